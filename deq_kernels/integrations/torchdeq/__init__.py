"""Solvers for torchdeq's registry, with its signatures and results, and gradients for its layers.

    from deq_kernels.integrations import torchdeq as drop_in

    drop_in.register()                                   # broyden, anderson, fixed_point_iter
    deq = torchdeq.get_deq(f_solver="broyden", ift=True) # unchanged
    drop_in.set_gradient(deq, dk.Shine(fallback=1.3))    # optional
    drop_in.unregister()

The solvers can be called without torchdeq; only `register` and `unregister` need it.

The three solvers return what torchdeq's own return, trace and all, up to rounding, while histories
fit. Deliberate differences:

- A sample that meets a NaN or an infinity loses that step, not its best iterate for good, and after
  two of them it no longer keeps the batch running.
- The rule for lack of progress looks at each sample's last 30 residuals; torchdeq compares samples
  with each other.
- Broyden with `LBFGS_thres` below `max_iter` drops its oldest factor; torchdeq overwrites its
  oldest pair, although later pairs were made with it.
- `ls=True` shortens steps per sample (`line_search` of `deq_kernels.Broyden`), and each trial is
  one of `max_iter`; torchdeq searches for the whole batch, and counts accepted steps.
- A singular system in Anderson's method costs its sample the acceleration of that step; nothing
  is raised.
- Unknown options raise TypeError; torchdeq ignores them. f must not change its z in place, and
  clones what it keeps of it.

Kept, so that results agree: the whole batch goes on until its last sample meets `tol`, an index of
`indexing` counts evaluations with that at x0 for `broyden` (so that the last step is not indexed),
and a solve that ends early may return fewer states than were asked for. The solvers `dk_...` have
none of this: each sample stops by itself, and every index yields a state.
"""

from deq_kernels.integrations.torchdeq.gradient import set_gradient
from deq_kernels.integrations.torchdeq.own_solvers import (
    OWN_SOLVERS,
    dk_adjoint_broyden,
    dk_anderson,
    dk_broyden,
    dk_fixed_point,
    dk_gmres,
    dk_lbfgs,
)
from deq_kernels.integrations.torchdeq.registry import register, unregister
from deq_kernels.integrations.torchdeq.solvers import (
    SAME_SOLVERS,
    anderson,
    broyden,
    fixed_point_iter,
)

__all__ = [
    "OWN_SOLVERS",
    "SAME_SOLVERS",
    "anderson",
    "broyden",
    "dk_adjoint_broyden",
    "dk_anderson",
    "dk_broyden",
    "dk_fixed_point",
    "dk_gmres",
    "dk_lbfgs",
    "fixed_point_iter",
    "register",
    "set_gradient",
    "unregister",
]
