"""Measures that need a package of the optional extras"""
