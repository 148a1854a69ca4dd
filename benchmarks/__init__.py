"""What measures: `python -m benchmarks`, and the machinery of its suites.

Each suite is a room: `broyden` compares whole Broyden solves, `anderson` whole Anderson solves,
`cells` whole solves of structured cells, `training` training steps of the models. What they share
lies here: devices, clocks and interleaved rounds, and reports as data and as text. Whatever is
compared must be shown to do the same work before it is timed. `gpu` builds, tests and measures on a
machine with a GPU.
"""
