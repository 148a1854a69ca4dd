"""The tile every sum over the dimension is cut into, by the kind of device.

`csrc/cpu/plan.h` states the CPU's, `csrc/cuda/plan.h` the GPU's.
"""

TILES = {"cpu": 4096, "cuda": 2048}


def tile_count(dim: int, device_type: str) -> int:
    """Tiles of a state of `dim` elements: what scratch tables are sized by."""
    # On a device without kernels the reference runs, which needs no scratch.
    tile = TILES.get(device_type, TILES["cpu"])
    return (dim + tile - 1) // tile
