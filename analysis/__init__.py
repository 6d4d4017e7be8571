"""Measures on a causal language model frozen at one training step.

This package knows models and texts; it knows nothing of Lightning or Weights & Biases, so the same code measures the
live model (called from `callbacks`) and a saved or public checkpoint (called from `python -m analysis`).
"""
