"""The solvers of locuslab/deq, locuslab/mdeq and their forks: one import line to replace.

| repository | instead of | import |
|---|---|---|
| locuslab/deq | `lib.solvers` | `deq_kernels.integrations.locuslab.deq` |
| locuslab/mdeq | `modules.broyden` | `deq_kernels.integrations.locuslab.mdeq` |
| phantom_grad | `modules.broyden` | `deq_kernels.integrations.locuslab.mdeq` |
| SHINE | `mdeq_lib.modules.broyden`, `.adj_broyden` | `deq_kernels.integrations.locuslab.shine` |

Signatures and keys of the results are theirs, and so are the numbers, up to rounding, while
histories fit. Like theirs, these solvers stop all samples together, by norms over the whole batch,
and return the iterate of the whole batch with the smallest one: `deq_kernels.Broyden` does not.

Deliberate differences: a residual that is not finite costs its samples a step instead of being
written into the factors as zeros; a full history of Broyden's loses its oldest factor; `ls=True`
shortens steps per sample, each trial being a step; what is never assigned there after a poor start
("lowest_xest") is x0 here. States may have any shape [B, ...].
"""
