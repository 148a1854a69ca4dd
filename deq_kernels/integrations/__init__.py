"""Drop-ins for other libraries' solvers. Nothing here is imported unless it is asked for.

- `deq_kernels.integrations.torchdeq`: solvers for torchdeq's registry, gradients for its layers;
- `deq_kernels.integrations.locuslab`: the solvers of the repositories deq and mdeq and their forks;
- `deq_kernels.integrations.pairs`: their U and V factors as inverse estimates, and back.
"""
