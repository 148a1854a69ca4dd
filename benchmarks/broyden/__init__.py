"""Whole Broyden solves: the same map, the same start, the same number of evaluations of the map."""
