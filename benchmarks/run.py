"""Run the benchmarks: the same as ``deq-kernels bench``. The package must be installed."""

import sys

from deq_kernels.commands.bench import main

if __name__ == "__main__":
    sys.exit(main())
