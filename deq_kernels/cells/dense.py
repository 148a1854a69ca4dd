"""The dense cell z = φ(W z + b)."""

from __future__ import annotations

from torch import Tensor

from deq_kernels.cells.map import StructuredMap
from deq_kernels.cells.structured import StructuredCell, check_tensors


class DenseCell(StructuredCell):
    """f(z) = φ(W z + b) for each row, a sample.

        layer = dk.DEQ(DenseCell(weight, activation="tanh"), solver=dk.FixedPoint(rtol=1e-4))
        z = layer(torch.zeros_like(b), b)

    There is one answer if ρ(|W|) < 1 and φ has slopes of at most 1, as all but gelu have
    (`deq_kernels.nn.perron_frobenius_bound`). With ℓ = ∂L/∂z and g = φ' ⊙ w the gradients are
    ∂L/∂b = g and ∂L/∂W = gᵀ z, where w solves w = Wᵀ (φ' ⊙ w) + ℓ or is estimated. In one op the
    layer returns f of each sample's best iterate, the value that the slopes of the gradient belong
    to. Source: docs/algebra.md, section 3.

    Args:
        weight: see `StructuredCell`, as for every other option.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        activation: str,
        norm: str = "l2",
        accelerate: bool = True,
        one_op: bool = True,
    ) -> None:
        super().__init__(
            weight, activation=activation, norm=norm, accelerate=accelerate, one_op=one_op
        )

    def bind(self, b: Tensor, *, weight: Tensor | None = None) -> StructuredMap:
        """The map of one call.

        Args:
            b: [B, n] float64, float32, float16 or bfloat16. Differentiable.
            weight: W in the place of the cell's own, [n, n], dtype and device of b. Differentiable.

        Raises:
            TypeError: a tensor has the wrong dtype or device.
            ValueError: a shape is wrong, or there is no weight.
        """
        weight = self._weight(weight)
        check_tensors(b, weight)
        return self._map(b, weight, values=None, pattern=None)
