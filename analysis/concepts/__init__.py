"""Concepts as labelled sentences: files, rules, labelling, matched negatives, lexicons."""
