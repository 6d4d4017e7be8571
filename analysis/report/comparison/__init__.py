"""Runs, or two steps of one run, beside each other"""
