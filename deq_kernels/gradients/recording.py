"""The graph of f(z) for products with Jᵀ, as something that autograd saves.

A checkpoint around the layer drops what the forward pass saves, and computes all of it anew once
the backward pass asks for it. On the graph of the forward pass it would do so for every product
with Jᵀ, the solve included, since each product is a backward pass of its own. So the graph itself
travels as an attribute of a saved tensor: what a checkpoint hands back is then the tensor of its
own forward pass, with a graph that has all its values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def carrier(f_z: Tensor, z_input: Tensor) -> Tensor:
    """An empty tensor that carries f(z) and z, with the graph between them."""
    empty = torch.empty(0, device="cpu")
    empty.recording = (f_z, z_input)  # type: ignore[attr-defined]  # tensors take attributes
    return empty


def recording(carried: Tensor, f_z: Tensor, z_input: Tensor) -> tuple[Tensor, Tensor]:
    """f(z) and z from `carrier`; as saved by themselves where hooks made the tensor anew."""
    found: tuple[Tensor, Tensor] = getattr(carried, "recording", (f_z, z_input))
    return found
