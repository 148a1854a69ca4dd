"""The weights of an Anderson step; as in csrc/algebra/anderson.h.

Source: docs/algebra.md, section 4. Vectors are in the order of age, newest change first, and stay
in registers, [SLOTS] with SLOTS >= count; matrices stay in the table.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deq_kernels.ops.triton_support.product_form import STAGES, spread

LARGEST_WEIGHT = tl.constexpr(1e30)  # beyond it, a weight is no use to a float32 state
LARGEST_PIVOT = tl.constexpr(1e300)


@triton.jit
def slots_by_age(
    newest: tl.tensor,  # slot of the newest change
    capacity: tl.tensor,  # at least 1
    count: tl.tensor,
    SLOTS: tl.constexpr,
) -> tl.tensor:
    """Where in the ring the changes lie, int32 [SLOTS]; 0 from `count` on."""
    age = tl.arange(0, SLOTS)
    slot = newest.to(tl.int32) - age
    slot = tl.where(slot < 0, slot + capacity.to(tl.int32), slot)
    return tl.where(age < count, slot, 0)


@triton.jit
def mixing_weights(
    table: tl.tensor,  # float64 [capacity, 2 capacity], by slot: <t_i, t_j>, then room
    slot: tl.tensor,  # int32 [SLOTS], from `slots_by_age`
    newest: tl.tensor,  # float64 [SLOTS]: <t_j, t_newest>, zero from `count` on
    b: tl.tensor,  # float64 [SLOTS]: <t_j, r>, zero from `count` on
    capacity: tl.tensor,
    count: tl.tensor,
    ridge: tl.tensor,  # lambda
    share: tl.float64,
    SLOTS: tl.constexpr,
) -> tl.tuple:
    """(gamma, useful): the solution [SLOTS], and whether it is of any use.

    (G + lambda L) gamma = b + lambda e_newest with L = tridiag(-1, 2, -1), by LDL^T, newest change
    first: a change that depends on newer ones gets no weight.

    Reads no product with the newest change from memory: they are in `newest`, and perhaps not yet
    there for all to see.
    """
    age = tl.arange(0, SLOTS)
    stored = age < count
    row = slot.to(tl.int64) * 2 * capacity
    norm_sq = tl.load(table + row + slot, mask=stored & (age > 0), other=0.0)
    norm_sq += tl.where(age == 0, newest, 0.0)
    # Row k of the room holds column k of L D.
    room = table + capacity
    right = b + tl.where(age == 0, ridge, 0.0)
    pivots = tl.zeros((SLOTS,), tl.float64)
    for k in range(count):
        older = (age > 0) & (age < tl.where(k > 0, count, 0))
        column = tl.load(table + spread(row, k, SLOTS) + slot, mask=older, other=0.0)
        column += tl.where(age == 0, spread(newest, k, SLOTS), 0.0)
        column += tl.where((age > 0) & (age < tl.where(k > 0, 0, count)), newest, 0.0)
        off = tl.abs(age - k)
        column += ridge * tl.where(
            stored, tl.where(off == 0, 2.0, tl.where(off == 1, -1.0, 0.0)), 0.0
        )
        for i in tl.range(0, k, num_stages=STAGES):
            before = tl.load(room + i * 2 * capacity + age, mask=stored & (age >= k), other=0.0)
            pivot = spread(pivots, i, SLOTS)
            # What an unusable change left may not be finite.
            before = tl.where(pivot > 0.0, before, 0.0)
            column -= before * (spread(before, k, SLOTS) / tl.where(pivot > 0.0, pivot, 1.0))
        tl.store(room + k * 2 * capacity + age, column, mask=stored & (age >= k))
        pivot = spread(column, k, SLOTS)
        length_sq = spread(norm_sq, k, SLOTS)
        # Written so that NaN fails a comparison.
        usable = (length_sq > 0.0) & (pivot > share * (length_sq + 2.0 * ridge))
        usable = usable & (pivot <= LARGEST_PIVOT)
        factor = tl.where(usable & (age > k), column / tl.where(usable, pivot, 1.0), 0.0)
        right -= factor * tl.where(usable, spread(right, k, SLOTS), 0.0)
        pivots += tl.where(usable & (age == k), pivot, 0.0)
        # One thread reads what another has written.
        tl.debug_barrier()
    gamma = tl.zeros((SLOTS,), tl.float64)
    for done in range(count):
        k = count - 1 - done
        column = tl.load(room + age.to(tl.int64) * 2 * capacity + k, mask=age < k, other=0.0)
        pivot = spread(pivots, k, SLOTS)
        usable = pivot > 0.0
        weight = tl.where(usable, spread(right, k, SLOTS) / tl.where(usable, pivot, 1.0), 0.0)
        right -= tl.where(usable & (age < k), column * weight, 0.0)
        gamma += tl.where(age == k, weight, 0.0)
    useless = tl.sum((tl.abs(gamma) <= LARGEST_WEIGHT).to(tl.int32), 0) < SLOTS
    return gamma, (tl.max(pivots, 0) > 0.0) & (useless == 0)
