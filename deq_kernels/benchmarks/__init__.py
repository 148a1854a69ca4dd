"""The benchmark harness behind ``deq-kernels bench`` and ``benchmarks/run.py``.

It compares whole Broyden solves: the same map, the same start, the same number of evaluations of
the map, and iterates that are checked to be equal before anything is timed.
"""
