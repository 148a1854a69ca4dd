"""The memory bandwidth that a share is measured against: STREAM's triad a = b + s * c."""

import torch

from .machine import last_level_cache_bytes

_LEAST_BYTES_PER_ARRAY = 128 * 2**20
_CACHES_PER_ARRAY = 4


class Triad:
    """One triad over three arrays, each at least four times the last-level cache.

    The arrays are allocated and touched once. As in STREAM, three arrays are counted; the read
    that a write may cause is not.
    """

    def __init__(self, *, dtype: torch.dtype) -> None:
        cache = last_level_cache_bytes() or 0
        array_bytes = max(_LEAST_BYTES_PER_ARRAY, _CACHES_PER_ARRAY * cache)
        count = array_bytes // dtype.itemsize
        self._a = torch.zeros(count, dtype=dtype).fill_(1)
        self._b = torch.full_like(self._a, 2)
        self._c = torch.full_like(self._a, 3)

    @property
    def bytes_moved(self) -> int:
        """Bytes of one run."""
        return 3 * self._a.numel() * self._a.itemsize

    def __call__(self) -> None:
        torch.add(self._b, self._c, alpha=0.5, out=self._a)
