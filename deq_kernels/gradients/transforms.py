"""Ways to differentiate that an implicit layer does not have, refused by name."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deq_kernels.solvers import State


def refuse_transforms() -> None:
    """Raise NotImplementedError inside torch.func's transforms, such as grad, vmap and jvp.

    A solver works on its state in place and without autograd, which the transforms would take for
    a constant.
    """
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "DEQ does not run inside transforms of torch.func (grad, vjp, jacrev, vmap, jvp, ...). "
            "Use torch.autograd.grad or .backward(), with create_graph=True for second "
            "derivatives; put what vmap maps over into the batch dimension; and call a layer with "
            "other parameters through torch.func.functional_call, outside of transforms."
        )


def refuse_batched(cotangent: Tensor) -> None:
    """Raise NotImplementedError for what stands for a batch of cotangents, under a kind of vmap."""
    functorch = torch._C._functorch
    if functorch.is_batchedtensor(cotangent) or functorch.is_legacy_batchedtensor(cotangent):
        raise NotImplementedError(
            "This gradient takes one cotangent at a time, but got a batch of them, as from "
            "is_grads_batched=True, vectorize=True or torch.func.vmap. Call torch.autograd.grad "
            "once for each, with retain_graph=True."
        )


def refuse_tangents(state: State) -> None:
    """Raise NotImplementedError where forward-mode AD carries a tangent in what f returned."""
    for part in state if isinstance(state, tuple) else (state,):
        # What is no tensor at all is refused elsewhere, with its own message.
        if isinstance(part, Tensor) and forward_ad.unpack_dual(part).tangent is not None:
            raise NotImplementedError(
                "DEQ has no forward-mode derivative, but f(z) carries a tangent. Use reverse mode "
                "(torch.autograd.grad), or call the layer outside of dual_level()."
            )
