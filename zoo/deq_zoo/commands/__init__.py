"""The subcommands of `deq-kernels`, one module each."""
