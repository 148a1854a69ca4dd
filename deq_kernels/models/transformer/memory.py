"""What a DEQ-Transformer keeps of the tokens before the present segment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """Equilibrium and injection of the last M tokens of each stream, without a graph.

    Attributes:
        z: [B, M, D].
        u: [B, M, 3 D].
    """

    z: Tensor
    u: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "z", self.z.detach())
        object.__setattr__(self, "u", self.u.detach())
        fits = self.z.dim() == self.u.dim() == 3 and self.z.shape[:2] == self.u.shape[:2]
        if not fits or self.u.shape[2] != 3 * self.z.shape[2]:
            raise ValueError(
                "a memory holds z [B, M, D] and u [B, M, 3 D] of the same tokens; got "
                f"{list(self.z.shape)} and {list(self.u.shape)}."
            )

    @property
    def length(self) -> int:
        """M."""
        return self.z.shape[1]

    @staticmethod
    def after(memory: Memory | None, z: Tensor, u: Tensor, *, length: int) -> Memory | None:
        """The last `length` tokens of a memory and the segment (z, u) after it; None for none."""
        if length == 0:
            return None
        if memory is not None and z.shape[1] < length:
            z, u = torch.cat((memory.z, z.detach()), 1), torch.cat((memory.u, u.detach()), 1)
        return Memory(z[:, -length:], u[:, -length:])
