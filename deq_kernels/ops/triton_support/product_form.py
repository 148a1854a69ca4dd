"""The rank-sized algebra of the product-form inverse; as in csrc/algebra/product_form.h.

Source: docs/algebra.md, section 1. The table of one sample is float64 [capacity, capacity + 2]; row
j holds G_j0 ... G_j,capacity-1, alpha_j and omega_j. The triangular systems are solved column by
column: the unknowns stay in registers, [SLOTS] with SLOTS >= capacity, and each one, once found, is
eliminated from the others with a row of the symmetric G, which lies contiguous and is fetched ahead
of its turn. Rows and columns that hold nothing yet are never read.
"""

from __future__ import annotations

import triton
import triton.language as tl

SINGULAR_SHARE = tl.constexpr(1e-8)
STAGES = tl.constexpr(4)


@triton.jit
def entry(vector: tl.tensor, index: tl.tensor, SLOTS: tl.constexpr) -> tl.tensor:
    """vector[index] of a vector [SLOTS] in registers."""
    return tl.sum(tl.where(tl.arange(0, SLOTS) == index, vector, 0.0), 0)


@triton.jit
def spread(vector: tl.tensor, index: tl.tensor, SLOTS: tl.constexpr) -> tl.tensor:
    """vector[index] in every place of [SLOTS]: one shuffle, where `entry` adds up."""
    return tl.gather(vector, tl.full((SLOTS,), index, tl.int32), 0)


@triton.jit
def matvec_coefficients(
    q: tl.tensor,  # float64 [SLOTS]: q_j = <p_j, H_0 x> for j < rank
    table: tl.tensor,
    capacity: tl.tensor,
    rank: tl.tensor,
    SLOTS: tl.constexpr,
) -> tl.tensor:
    """e with H x = H_0 x + sum_{j <= rank} e_j p_j, [SLOTS], zero beyond.

    c_j = omega_j (q_j + sum_{i<j} c_i (G_j,i+1 + (alpha_i - 1) G_ji)),
    e_j = c_{j-1} + (alpha_j - 1) c_j.
    """
    j = tl.arange(0, SLOTS)
    e = tl.zeros((SLOTS,), tl.float64)
    gram = tl.load(table + j, mask=j < rank, other=0.0)  # G_ij of the i at hand
    for i in tl.range(0, rank, num_stages=STAGES):
        factor = table + i * (capacity + 2) + capacity
        shift = tl.load(factor) - 1.0
        omega = tl.load(factor + 1)
        next_gram = tl.load(factor + 2 + j, mask=(j < rank) & (i + 1 < rank), other=0.0)
        along = tl.where(j > i, next_gram + shift * gram, 0.0)
        c = omega * spread(q, i, SLOTS)
        q += c * along
        e += tl.where(j == i, shift * c, tl.where(j == i + 1, c, 0.0))
        gram = next_gram
    return e


@triton.jit
def rmatvec_coefficients(
    q: tl.tensor,  # float64 [SLOTS]: q_j = <p_j, x> for j < rank
    q_next: tl.tensor,  # float64 [SLOTS]: q_{j+1} for j < rank
    table: tl.tensor,
    capacity: tl.tensor,
    rank: tl.tensor,
    SLOTS: tl.constexpr,
) -> tl.tensor:
    """d with H^T x = H_0^T (x + sum_{j < rank} d_j p_j), [SLOTS], zero beyond.

    d_j = omega_j (q_{j+1} + (alpha_j - 1) q_j + sum_{i>j} d_i (G_i,j+1 + (alpha_j - 1) G_ij)).
    """
    j = tl.arange(0, SLOTS)
    factors = table + j.to(tl.int64) * (capacity + 2) + capacity
    shift = tl.load(factors, mask=j < rank, other=1.0) - 1.0
    u_dot_y = q_next + shift * q
    d = tl.zeros((SLOTS,), tl.float64)
    for done in tl.range(0, rank, num_stages=STAGES):
        i = rank - 1 - done
        row = table + i * (capacity + 2)
        omega = tl.load(row + capacity + 1)
        gram = tl.load(row + j, mask=j < i, other=0.0)
        next_gram = tl.load(row + 1 + j, mask=j < i, other=0.0)
        d_i = omega * spread(u_dot_y, i, SLOTS)
        u_dot_y += d_i * (next_gram + shift * gram)
        d += tl.where(j == i, d_i, 0.0)
    return d


@triton.jit
def direction_coefficients(
    q: tl.tensor,  # float64 [SLOTS]: q_j = <p_j, H_0 r> for j < count
    newest: tl.tensor,  # float64 [SLOTS]: <p_j, p_{count-1}> for j < count, zero beyond
    table: tl.tensor,
    capacity: tl.tensor,
    count: tl.tensor,  # at least 1
    SLOTS: tl.constexpr,
) -> tl.tuple:
    """(scale, a) with the next direction p_count = scale H_0 r + sum_{j < count} a_j p_j.

    Takes the newest Gram column in and finishes the newest factor, k = count - 1, by setting its
    weight. With w = H_k r and pi = <p_k, w>: p_count = -(N w + (alpha_k - 1) pi p_k) / (pi + N).
    Guard: a vanishing or non-finite denominator skips the factor, p_count = -w.
    """
    j = tl.arange(0, SLOTS)
    k = count - 1
    row = table + k * (capacity + 2)
    tl.store(row + j, newest, mask=j < count)
    tl.store(table + j.to(tl.int64) * (capacity + 2) + k, newest, mask=j < k)

    # Reads no Gram entry of p_k: those are in `newest`, and not yet in memory for all to see.
    e = matvec_coefficients(q, table, capacity, k, SLOTS)
    pi = entry(q, k, SLOTS) + tl.sum(e * newest, 0)
    norm_sq = entry(newest, k, SLOTS)
    denominator = pi + norm_sq
    # Written so that NaN fails a comparison and lands in the guard.
    usable = (norm_sq >= 1.0e-300) & (tl.abs(denominator) <= 1.0e300)
    usable = usable & (tl.abs(denominator) > norm_sq * SINGULAR_SHARE)
    divisor = tl.where(usable, denominator, 1.0)
    scale = tl.where(usable, -norm_sq / divisor, -1.0)
    shift = tl.load(row + capacity) - 1.0
    correction = tl.where(usable, shift * pi / divisor, 0.0)
    a = scale * e - tl.where(j == k, correction, 0.0)
    weight = tl.where(usable, 1.0 / tl.where(usable, norm_sq, 1.0), 0.0)
    tl.store(row + capacity + 1, weight)
    return scale, a


@triton.jit
def drop_factor(table: tl.tensor, capacity: tl.tensor, SLOTS: tl.constexpr) -> None:
    """Let factor 0 leave a full table: the others move up, but for the newest direction's dots."""
    j = tl.arange(0, SLOTS)
    left = capacity - 1
    for i in range(left):
        row = table + i * (capacity + 2)
        gram = tl.load(row + capacity + 3 + j, mask=j < left, other=0.0)
        step = tl.load(row + 2 * capacity + 2)
        weight = tl.load(row + 2 * capacity + 3)
        # Every entry is read before a thread overwrites it.
        tl.debug_barrier()
        tl.store(row + j, gram, mask=j < left)
        tl.store(row + capacity, step)
        tl.store(row + capacity + 1, weight)
    tl.debug_barrier()
