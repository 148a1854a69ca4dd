"""Whole solves of graph cells and of their adjoints, to one tolerance, from the same start."""
