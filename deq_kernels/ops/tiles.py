"""The tile every sum over the dimension is cut into (`csrc/algebra/plan.h` states the same)."""

TILE = 4096


def tile_count(dim: int) -> int:
    """Tiles of a state of `dim` elements: what scratch tables are sized by."""
    return (dim + TILE - 1) // TILE
