"""Classifiers on hidden states: sampled tokens, folds, solvers."""
