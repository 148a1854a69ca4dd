"""Relative positions: their features, and from (query, distance) to (query, key)."""

import torch
from torch import Tensor

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

    Column c of x [..., T, L + 1] belongs to the distance L - 1 - c, the last one to none; query i
    stands at position L - T + i, so its distance to key j is L - T + i - j. Entries of keys after
    the query (j > L - T + i) are other entries of x, those that `distance_mask` masks. A row of y
    begins L elements after the one before, so y [..., T, L] is a view of a contiguous x (after Dai
    et al. 2019, "Transformer-XL", appendix B, which pads and copies).
    """
    queries, keys = x.shape[-2], x.shape[-1] - 1
    return x.flatten(-2).narrow(-1, queries - 1, queries * keys).unflatten(-1, (queries, keys))


def distance_mask(queries: int, keys: int, window: int, *, like: Tensor) -> Tensor:
    """[queries, keys + 1], to be added before `relative_shift`: 0 for what is seen, else -inf.

    Query i sees key j if j is at most window - 1 tokens before it, and not after it. In the columns
    of `relative_shift`, those keys are the distances below `window`, from column T - 1 - i on, at
    which key 0 stands.

    Args:
        queries: T.
        keys: L.
        window: tokens that a query sees, itself included.
        like: a tensor whose dtype and device the mask takes.
    """
    column = torch.arange(keys + 1, device=like.device)
    first = torch.arange(queries - 1, -1, -1, device=like.device)[:, None]
    distance = keys - 1 - column
    seen = (column >= first) & (distance >= 0) & (distance < window)
    return like.new_zeros(queries, keys + 1).masked_fill_(~seen, -torch.inf)
