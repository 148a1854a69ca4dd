"""Where a recorded f(z) begins, and which tensors it depends on, by autograd's graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge


class StateInput(torch.autograd.Function):
    """The z at which f is recorded: products with Jᵀ end here, and so does the backward pass.

    Without it the backward pass of the loss would leave Jᵀw behind as the gradient of a leaf.
    """

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        return None


STATE_INPUT_NODE = f"{StateInput.__name__}Backward"
"""What autograd's graph calls it."""


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What f(z) depends on besides z.

    Attributes:
        tensors: leaves of the graph, and those of the given inputs that it reaches first.
        nodes: the operations between them and f(z), and those that made the inputs among them.
        reaches_z: whether f(z) depends on z, too.
    """

    tensors: tuple[Tensor, ...]
    nodes: frozenset[Any]
    reaches_z: bool

    @classmethod
    def of(cls, f_z: Tensor, z: Tensor, inputs: Sequence[Tensor]) -> Dependencies:
        """Walk the graph of f_z. What a layer inside f was solved from is no dependency.

        Args:
            f_z: what f made of z.
            z: which requires a gradient; not a dependency.
            inputs: tensors at which the walk ends, too.

        Raises:
            NotImplementedError: f uses reentrant checkpoints, which hide what they depend on.
        """
        # Leaves are found without this: their nodes know them. (A sparse leaf has no public edge.)
        ends = {_edge(tensor): tensor for tensor in (z, *inputs) if tensor.grad_fn is not None}
        found: dict[int, Tensor] = {}
        reaches_z = False
        nodes: set[Any] = set()
        expanded: set[Any] = set()
        pending = [_edge(f_z)] if f_z.requires_grad else []
        while pending:
            node, index = pending.pop()
            if node is None:
                continue
            if node.name() == "torch::autograd::AccumulateGrad":
                tensor = node.variable
            else:
                tensor = ends.get((node, index))
                nodes.add(node)
            if tensor is None and node not in expanded and node.name() != STATE_INPUT_NODE:
                _refuse_reentrant_checkpoint(node)
                expanded.add(node)
                pending.extend(node.next_functions)
            elif tensor is z:
                reaches_z = True
            elif tensor is not None:
                found[id(tensor)] = tensor
        return cls(tuple(found.values()), frozenset(nodes), reaches_z)


def _edge(tensor: Tensor) -> tuple[Any, int]:
    """The place in the graph where a tensor's gradient arrives."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn, tensor.output_nr
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _refuse_reentrant_checkpoint(node: Any) -> None:
    """What was checkpointed is no part of the graph, nor are its parameters."""
    if node.name() == "CheckpointFunctionBackward":
        raise NotImplementedError(
            "f uses torch.utils.checkpoint with use_reentrant=True, which gives no products with "
            "Jᵀ and hides the parameters that it depends on. Pass use_reentrant=False."
        )
