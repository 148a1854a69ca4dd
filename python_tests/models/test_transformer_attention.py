"""Relative attention and the whole cell against their formulas written with loops, in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from deq_kernels.models.transformer import Memory, TransformerCell, TransformerConfig
from deq_kernels.models.transformer.attention import RelativeAttention
from deq_kernels.models.transformer.positions import (
    distance_mask,
    position_features,
    relative_shift,
)

CONFIG = TransformerConfig(
    vocabulary=10, width=12, heads=3, inner_width=20, segment=5, memory=4, window=6
)
DTYPE = torch.float64


def _randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter)


def _weight(linear: nn.Module) -> Tensor:
    """g v / ‖v‖ with one norm per output."""
    parameters = dict(linear.named_parameters())
    g, v = (parameters[f"parametrizations.weight.original{i}"] for i in range(2))
    return g * v / v.norm(dim=1, keepdim=True)


def _features(distance: int, width: int) -> Tensor:
    angles = [distance / 10_000 ** (2 * k / width) for k in range(width // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=DTYPE)


def _attend(attention: RelativeAttention, c: Tensor, u: Tensor, queries: int) -> Tensor:
    """o by loops over samples, heads, queries and keys, from all tokens c and injections u."""
    batch, length, width = c.shape
    size = width // attention.heads
    weight, by_position = _weight(attention.qkv), _weight(attention.position)
    rows = []
    for b in range(batch):
        q, k, v = (torch.stack([weight @ c[b, t] + u[b, t] for t in range(length)])).chunk(3, 1)
        for i in range(length - queries, length):
            heads = []
            for h in range(attention.heads):
                part = slice(h * size, (h + 1) * size)
                scores, values = [], []
                for j in range(max(0, i - attention.window + 1), i + 1):
                    r = (by_position @ _features(i - j, width))[part]
                    score = (q[i, part] + attention.content_bias[h, 0]) @ k[j, part]
                    score = score + (q[i, part] + attention.position_bias[h, 0]) @ r
                    scores.append(score / math.sqrt(size))
                    values.append(v[j, part])
                probabilities = torch.softmax(torch.stack(scores), 0)
                heads.append(sum(p * x for p, x in zip(probabilities, values, strict=True)))
            out = dict(attention.out.named_parameters())
            rows.append(_weight(attention.out) @ torch.cat(heads) + out["bias"])
    return torch.stack(rows).view(batch, queries, width)


def _layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def _cell(normalization: Literal["post", "pre"]) -> TransformerCell:
    cell = TransformerCell(replace(CONFIG, normalization=normalization)).to(DTYPE)
    _randomise(cell)
    return cell


def _inputs(length: int = 5, memory: int = 4) -> tuple[Tensor, Tensor, Memory | None]:
    z = torch.randn(2, length + memory, 12, dtype=DTYPE)
    u = torch.randn(2, length + memory, 36, dtype=DTYPE)
    kept = Memory(z[:, :memory], u[:, :memory]) if memory else None
    return z, u, kept


@pytest.mark.parametrize("normalization", ["post", "pre"])
@pytest.mark.parametrize("memory", [0, 1, 4, 7])
def test_the_cell_is_its_formula(normalization: Literal["post", "pre"], memory: int) -> None:
    cell = _cell(normalization)
    z, u, kept = _inputs(memory=memory)
    c = z if normalization == "post" else _layer_norm(z)
    o = _attend(cell.attention, c, u, 5)
    now, injection = z[:, memory:], u[:, memory:]
    h = _layer_norm(now + o)
    bias1, bias2 = (dict(m.named_parameters())["bias"] for m in (cell.widen, cell.narrow))
    inner = (h @ _weight(cell.widen).T + bias1).clamp(min=0)
    expected = h + inner @ _weight(cell.narrow).T + bias2
    if normalization == "post":
        expected = _layer_norm(expected)
    actual = cell(now, *cell.constants(injection, kept))
    torch.testing.assert_close(actual, expected)


def test_attention_with_dropout_is_the_same_formula() -> None:
    """With dropout in training mode the softmax is written out: once with a mask of ones."""
    cell = TransformerCell(replace(CONFIG, attention_dropout=0.5)).to(DTYPE)
    _randomise(cell)
    z, u, kept = _inputs()
    now, injection = z[:, 4:], u[:, 4:]
    with cell.one_solve(injection, kept):
        arguments = cell.constants(injection, kept)
        dropped = cell(now, *arguments)
        torch.testing.assert_close(cell(now, *arguments), dropped, rtol=0, atol=0)
        mask = cell.attention.dropout.mask
        assert mask is not None
        assert mask.shape == (2, 3, 5, 9)
        cell.attention.dropout.mask = torch.ones_like(mask)
        undropped = cell(now, *arguments)
    assert (dropped - undropped).abs().max() > 1e-3
    torch.testing.assert_close(undropped, cell.eval()(now, *arguments))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 5), (4, 4), (3, 8)])
def test_relative_shift(queries: int, keys: int) -> None:
    x = torch.randn(2, 3, queries, keys + 1)
    shifted = relative_shift(x)
    assert shifted.shape == (2, 3, queries, keys)
    assert shifted.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    for i in range(queries):
        for j in range(keys - queries + i + 1):
            assert torch.equal(shifted[..., i, j], x[..., i, j + queries - 1 - i])


def test_features_of_long_distances_are_exact() -> None:
    features = position_features(3000, 6, like=torch.zeros(1))
    assert features.dtype == torch.float32
    for row, distance in ((0, 2999), (2995, 4), (2999, 0)):
        torch.testing.assert_close(
            features[row].double(), _features(distance, 6), rtol=0, atol=1e-7
        )


@pytest.mark.parametrize("window", [1, 2, 4, 9])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 5), (4, 4), (3, 8)])
def test_window(queries: int, keys: int, window: int) -> None:
    mask = distance_mask(queries, keys, window, like=torch.zeros(1, dtype=torch.float16))
    assert mask.dtype == torch.float16
    shifted = relative_shift(mask)
    for i in range(queries):
        for j in range(keys):
            distance = keys - queries + i - j
            expected = 0.0 if 0 <= distance < window else -math.inf
            assert shifted[i, j] == expected, (i, j)


def test_no_token_sees_a_later_one() -> None:
    cell = _cell("post")
    z, u, kept = _inputs()
    now, injection = z[:, 4:].clone(), u[:, 4:].clone()
    before = cell(now, *cell.constants(injection, kept))
    now[:, 3:] += 1.0
    injection[:, 3:] += 1.0
    after = cell(now, *cell.constants(injection, kept))
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3:] - before[:, 3:]).abs().max() > 1e-3


def test_gradients_of_the_cell() -> None:
    config = replace(CONFIG, width=4, heads=2, inner_width=3)
    cell = TransformerCell(config).to(DTYPE)
    _randomise(cell)
    z = torch.randn(1, 3, 4, dtype=DTYPE, requires_grad=True)
    u = torch.randn(1, 3, 12, dtype=DTYPE, requires_grad=True)
    kept = Memory(torch.randn(1, 2, 4, dtype=DTYPE), torch.randn(1, 2, 12, dtype=DTYPE))

    def evaluate(z: Tensor, u: Tensor, *parameters: Tensor) -> Tensor:
        return cell(z, *cell.constants(u, kept))

    # The parameters are perturbed in place, so f need not take them.
    assert torch.autograd.gradcheck(evaluate, (z, u, *cell.parameters()), fast_mode=True)


@pytest.mark.parametrize(("batch", "heads", "length"), [(2, 3, 5), (1, 1, 5)])
def test_kernels_of_gpus_get_a_mask_of_its_own(
    monkeypatch: pytest.MonkeyPatch, batch: int, heads: int, length: int
) -> None:
    """A view would begin in the middle of 16 bytes, which the fused kernels refuse."""
    masks: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor, scale: float) -> Tensor:
        masks.append(attn_mask)
        return q

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", attend)
    with torch.device("meta"):
        cell = TransformerCell(replace(CONFIG, heads=heads))
        u = torch.zeros(batch, length, 36)
        cell(torch.zeros(batch, length, 12), *cell.constants(u, None))
    (mask,) = masks
    assert mask.shape == (batch, heads, length, length)
    assert mask.is_contiguous()
    assert mask.storage_offset() == 0


def test_weights_are_computed_once_per_solve() -> None:
    cell = _cell("post")
    calls = []
    for module in cell.modules():
        if hasattr(module, "parametrizations"):
            module.parametrizations.weight[0].register_forward_hook(
                lambda module, inputs, output: calls.append(module)
            )
    z, u, kept = _inputs()
    with cell.one_solve(u[:, 4:], kept):
        arguments = cell.constants(u[:, 4:], kept)
        for _ in range(3):
            cell(z[:, 4:], *arguments)
    assert len(calls) == len(set(calls)) == 5
