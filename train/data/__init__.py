"""Text in many languages to batches."""
