"""Whole Anderson solves, on the problem and by the checks of the suite `broyden`."""
