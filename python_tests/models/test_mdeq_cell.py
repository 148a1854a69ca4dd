"""The cell against its formulas written out a second time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deq_kernels.models.mdeq.cell import BranchBlock, MDEQCell
from deq_kernels.models.mdeq.config import MDEQConfig
from deq_kernels.models.mdeq.fusion import Fusion


def _config(*, channels: tuple[int, ...] = (8, 16), dropout: float = 0.0) -> MDEQConfig:
    return MDEQConfig(
        image_channels=1,
        image_size=(8, 8),
        classes=3,
        channels=channels,
        head_channels=(2,) * len(channels),
        final_channels=4,
        expansion=2,
        dropout=dropout,
    )


def _randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter)


def _convolve(x: Tensor, weight: Tensor, *, stride: int) -> Tensor:
    """Convolution by its definition: a sum over shifted, strided windows of the padded image."""
    size = weight.shape[-1]
    height, width = x.shape[2] // stride, x.shape[3] // stride
    padded = nn.functional.pad(x, [size // 2] * 4)
    out = x.new_zeros(x.shape[0], weight.shape[0], height, width)
    for i in range(size):
        for j in range(size):
            rows = slice(i, i + stride * height, stride)
            columns = slice(j, j + stride * width, stride)
            out += torch.einsum("oc,bchw->bohw", weight[:, :, i, j], padded[:, :, rows, columns])
    return out


def _normalised(conv: nn.Module) -> Tensor:
    """g v / ‖v‖ with one norm per output channel."""
    parameters = dict(conv.named_parameters())
    g, v = (parameters[f"parametrizations.weight.original{i}"] for i in range(2))
    return g * v / v.flatten(1).norm(dim=1)[:, None, None, None]


def _group_norm(x: Tensor, norm: nn.Module, *, groups: int) -> Tensor:
    parameters = dict(norm.named_parameters())
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(dim=2, keepdim=True)
    variance = grouped.var(dim=2, keepdim=True, unbiased=False)
    out = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    return out * parameters["weight"][:, None, None] + parameters["bias"][:, None, None]


def _post(total: Tensor, fusion: Fusion) -> Tensor:
    _, conv, norm = fusion.post
    return _group_norm(_convolve(total.relu(), _normalised(conv), stride=1), norm, groups=4)


def test_branch_block() -> None:
    block = BranchBlock(_config(), channels=8).double()
    _randomise(block)
    z, u = torch.randn(2, 3, 8, 4, 6, dtype=torch.float64)
    inner = _convolve(z, _normalised(block.conv1), stride=1)
    inner = _group_norm(inner, block.norm1, groups=8).relu()
    inner = _convolve(inner, _normalised(block.conv2), stride=1)
    for injection in (u, None):
        injected = inner if injection is None else inner + injection
        expected = (_group_norm(injected, block.norm2, groups=8) + z).relu()
        expected = _group_norm(expected, block.norm3, groups=8)
        torch.testing.assert_close(block(z, injection), expected)


def test_fusion_of_two_branches() -> None:
    config = _config()
    fine, coarse = (Fusion(config, target=target).double() for target in range(2))
    _randomise(fine)
    _randomise(coarse)
    y = (
        torch.randn(3, 8, 8, 8, dtype=torch.float64),
        torch.randn(3, 16, 4, 4, dtype=torch.float64),
    )
    conv, norm, _ = fine.paths[1]
    up = _group_norm(_convolve(y[1], conv.weight, stride=1), norm, groups=8)
    up = up.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(fine(y), _post(y[0] + up, fine))
    conv, norm = coarse.paths[0]
    down = _group_norm(_convolve(y[0], conv.weight, stride=2), norm, groups=8)
    torch.testing.assert_close(coarse(y), _post(down + y[1], coarse))


def test_two_halvings_change_the_channels_in_the_last_one() -> None:
    fusion = Fusion(_config(channels=(8, 16, 24)), target=2).double()
    _randomise(fusion)
    conv1, norm1, _, conv2, norm2 = fusion.paths[0]
    assert conv1.weight.shape == (8, 8, 3, 3)
    assert conv2.weight.shape == (24, 8, 3, 3)
    y = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    half = _group_norm(_convolve(y, conv1.weight, stride=2), norm1, groups=8).relu()
    quarter = _group_norm(_convolve(half, conv2.weight, stride=2), norm2, groups=8)
    torch.testing.assert_close(fusion.paths[0](y), quarter)


def test_the_injection_reaches_the_finest_branch_only() -> None:
    cell = MDEQCell(_config()).double()
    z = tuple(torch.randn(2, *shape, dtype=torch.float64) for shape in _config().state_shapes)
    u = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    fine, coarse = cell.blocks
    y = (fine(z[0], u), coarse(z[1], None))
    expected = tuple(fuse(y) for fuse in cell.fusion)
    torch.testing.assert_close(cell(z, u), expected)


def test_branches_may_be_views_of_one_buffer() -> None:
    config = _config()
    cell = MDEQCell(config).double()
    flat = torch.randn(3, config.state_dim, dtype=torch.float64)
    sizes = [branch[0] * branch[1] * branch[2] for branch in config.state_shapes]
    views = tuple(
        part.view(3, *shape)
        for part, shape in zip(flat.split(sizes, dim=1), config.state_shapes, strict=True)
    )
    assert not views[0].is_contiguous()
    u = torch.randn(3, 8, 8, 8, dtype=torch.float64)
    copies = tuple(view.contiguous() for view in views)
    torch.testing.assert_close(cell(views, u), cell(copies, u))


def test_initial_weights() -> None:
    cell = MDEQCell(_config(channels=(32, 32)))
    plain = [m for m in cell.modules() if isinstance(m, nn.Conv2d) and "weight" in m._parameters]
    assert plain
    for conv in plain:
        assert 0.008 < conv.weight.std().item() < 0.012
    block = cell.blocks[0]
    assert isinstance(block, BranchBlock)
    # The framework's uniform default, ±1/√(32 · 9), has this standard deviation.
    assert block.conv1.weight.std().item() == pytest.approx((3 * 32 * 9) ** -0.5, rel=0.1)


def test_weights_are_computed_once_per_solve() -> None:
    cell = MDEQCell(_config())
    calls = []
    for module in cell.modules():
        if parametrize.is_parametrized(module):
            norm = module.parametrizations.weight[0]
            norm.register_forward_hook(lambda module, inputs, output: calls.append(module))
    z = tuple(torch.zeros(2, *shape) for shape in _config().state_shapes)
    u = torch.randn(2, 8, 8, 8)
    with cell.one_solve(u):
        for _ in range(3):
            z = cell(z, u)
    assert len(calls) == len(set(calls)) == 3 * 2


def test_weights_cached_without_a_graph_are_refused() -> None:
    cell = MDEQCell(_config())
    u = torch.randn(2, 8, 8, 8)
    with parametrize.cached():
        with torch.no_grad(), cell.one_solve(u):
            pass
        with (
            pytest.raises(RuntimeError, match=r"conv1\.weight is cached without a graph"),
            cell.one_solve(u),
        ):
            pass
