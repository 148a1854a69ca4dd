"""Ways to run a solve without its values, refused by name.

How many steps a solve takes depends on values, so a recording of one solve is wrong for other
inputs, and tensors that have no values cannot be solved for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops.dtypes import check_state_dtype
from deq_kernels.solvers.machinery.structure import State, Structure


def structure_of_start(z0: State, name: str) -> Structure:
    """How a start is rows [B, d], if a solve can begin there; `name` is what errors call it.

    Raises:
        TypeError: z0 has another structure than `State`, or a dtype that cannot be solved in.
        ValueError: its shapes do not fit together.
        NotImplementedError: see `refuse_recordings`.
    """
    structure = Structure.of(z0, name)
    check_state_dtype(structure.dtype)
    refuse_recordings(z0)
    return structure


def refuse_recordings(z0: State) -> None:
    """Raise NotImplementedError where a solve from z0 would be recorded, or z0 has no values.

    That is in torch.jit.trace, torch.export, make_fx, under FakeTensorMode, and on the device meta.
    """
    first = z0 if isinstance(z0, Tensor) else z0[0]
    refuse_meta(first.device)
    refuse_trace()
    if torch._C._len_torch_dispatch_stack() > 0 or type(first) is not Tensor:
        _refuse_symbolic(first)


def refuse_meta(device: torch.device) -> None:
    """Raise NotImplementedError for the device of tensors without values."""
    if device.type == "meta":
        raise NotImplementedError(
            "A solve takes as many steps as its values need, but on the device meta tensors have "
            "none. Give the model memory first (to_empty, then its weights); the solution has the "
            "shapes of z0."
        )


def refuse_trace() -> None:
    """Raise NotImplementedError inside of torch.jit.trace."""
    if torch.jit.is_tracing():
        raise NotImplementedError(
            "A solve takes as many steps as its values need, but torch.jit.trace would record "
            "those of this one input and repeat them for every other. Trace the cell alone, and "
            "call the layer or the solver from Python; or use torch.export for a structured cell."
        )


def _refuse_symbolic(tensor: Tensor) -> None:
    """Raise NotImplementedError for a FakeTensor, and inside of what records with them."""
    modes = torch._C._TorchDispatchModeKey
    recorded = any(
        torch._C._get_dispatch_mode(mode) is not None for mode in (modes.FAKE, modes.PROXY)
    )
    if not recorded:
        # Imported here, because whoever has such a tensor has imported it already.
        from torch._subclasses.fake_tensor import FakeTensor

        recorded = isinstance(tensor, FakeTensor)
    if recorded:
        raise NotImplementedError(
            "A solve takes as many steps as its values need, but under torch.export, make_fx and "
            "FakeTensorMode tensors have none that may be looked at. Record the cell alone, and "
            "call the layer or the solver from Python; or use a structured cell, whose solve is "
            "one op."
        )
