"""XGLM at training speed, and its loss."""
