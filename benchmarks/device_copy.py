"""The memory bandwidth that a share is measured against on a GPU: a copy within its memory."""

import torch

_BYTES = 2**30


class DeviceCopy:
    """One copy of an array of 1 GiB, many times the size of any cache on a GPU.

    The array is read once and written once, and both are counted.
    """

    def __init__(self, device: torch.device, *, dtype: torch.dtype) -> None:
        # Not zeros: data that is all alike can be moved faster than other data.
        self._source = torch.rand(_BYTES // dtype.itemsize, dtype=dtype, device=device)
        self._target = torch.zeros_like(self._source)

    @property
    def bytes_moved(self) -> int:
        """Bytes of one run."""
        return 2 * self._source.numel() * self._source.itemsize

    def __call__(self) -> None:
        self._target.copy_(self._source)
