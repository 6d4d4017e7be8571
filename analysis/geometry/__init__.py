"""Shapes of clouds of states: similarity of languages, calibration, dimensions."""
