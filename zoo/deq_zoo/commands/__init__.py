"""The subcommands of `deq-zoo`, one module each."""
