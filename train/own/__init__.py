"""`python -m train init`: own text to the configuration of a run and a list of analyses"""
