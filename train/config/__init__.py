"""The configuration of a run: read safely, checked before anything is made, saved and kept."""
