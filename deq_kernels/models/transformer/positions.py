"""Relative positions: their features, and from (query, distance) to (query, key)."""

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST_PERIOD = 10_000.0


def position_features(length: int, width: int, *, like: Tensor) -> Tensor:
    """[sin(δ ω), cos(δ ω)] of the distances δ = length - 1, ..., 0, with ω_k = 10000^(-2k / width).

    Source: Vaswani et al. 2017, section 3.5, sines first; the distances run from the key that is
    farthest from the last query to the last query itself, as keys do.

    Args:
        length: L, number of keys.
        width: D, even.
        like: a tensor whose dtype and device the features take.

    Returns:
        [L, D]; the angles are computed in float64, which long distances need.
    """
    device = like.device
    distance = torch.arange(length - 1, -1, -1, dtype=torch.float64, device=device)
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
    angle = distance[:, None] * LONGEST_PERIOD**-exponent
    return torch.cat((angle.sin(), angle.cos()), 1).to(like.dtype)


def relative_shift(x: Tensor) -> Tensor:
    """y[..., i, j] = x[..., i, j + T - 1 - i] for keys j that a causal query i sees.

    Column c of x [..., T, L] belongs to the distance L - 1 - c; query i stands at position
    L - T + i, so its distance to key j is L - T + i - j. Entries of keys after the query
    (j > L - T + i) are other entries of x; mask them. One copy, by padding a column and reading
    the rows with another stride (Dai et al. 2019, "Transformer-XL", appendix B).
    """
    queries, keys = x.shape[-2:]
    padded = F.pad(x, (1, 0)).reshape(*x.shape[:-2], keys + 1, queries)
    return padded[..., 1:, :].reshape(x.shape)


def visible_keys(queries: int, keys: int, window: int, *, device: torch.device) -> Tensor:
    """[queries, keys] bool: key j is at most window - 1 tokens before query i, and not after it."""
    position = torch.arange(keys - queries, keys, device=device)[:, None]
    distance = position - torch.arange(keys, device=device)
    return (distance >= 0) & (distance < window)
