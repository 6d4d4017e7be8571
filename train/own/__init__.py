"""`python -m train init`: from own text to the configuration of a run and the list of its analyses"""
