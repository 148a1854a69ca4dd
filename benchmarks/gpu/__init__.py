"""Build, test, check and measure on one NVIDIA GPU: `python -m benchmarks.gpu OUT`.

Begins before the package is built: nothing here imports torch or the library, but for
`interpreter.py`, which runs in the interpreter that has them.
"""
