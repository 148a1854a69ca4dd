"""Checkpoints: every bit back, and a clear error for anything else."""

from __future__ import annotations

import struct
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deq_zoo.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_config,
    load_checkpoint,
    save_checkpoint,
)

pytestmark = pytest.mark.skipif(
    find_spec("safetensors") is None, reason="checkpoints are written with safetensors"
)


def _checkpoint() -> Checkpoint:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.8, 0.9))
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return Checkpoint(
        epoch=3,
        step=70,
        config={"gradient": "shine", "damping": None, "rtol": 1e-3},
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        rng={"global": torch.get_rng_state()},
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    saved = _checkpoint()
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    assert (loaded.epoch, loaded.step, loaded.config) == (3, 70, saved.config)
    for got, expected in ((loaded.model, saved.model), (loaded.rng, saved.rng)):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert got[name].dtype == value.dtype
            assert torch.equal(got[name], value)
    assert loaded.optimizer["state"].keys() == saved.optimizer["state"].keys()
    for index, values in saved.optimizer["state"].items():
        assert loaded.optimizer["state"][index].keys() == values.keys()
        for name, value in values.items():
            assert torch.equal(loaded.optimizer["state"][index][name], value)
    (group,) = loaded.optimizer["param_groups"]
    assert group["lr"] == 0.1
    assert list(group["betas"]) == [0.8, 0.9]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, _checkpoint())

    def fail(file: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("deq_zoo.files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, replace(_checkpoint(), epoch=4))
    assert load_checkpoint(path).epoch == 3


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_short_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, _checkpoint())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"is damaged or no safetensors file"):
        load_checkpoint(path)


def test_a_changed_byte_in_the_data(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, _checkpoint())
    data = bytearray(path.read_bytes())
    (header,) = struct.unpack_from("<Q", data)
    data[8 + header] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"its checksum must be \d+, got \d+"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (rb"\"step\": 70", rb"\"step\": 71", r"its checksum must be \d+, got \d+"),
        (rb"\"lr\": 0.1", rb"\"lr\": 0.2", r"its checksum must be \d+, got \d+"),
        (rb"\"step\"", rb"\"stop\"", "metadata must hold .*step, got .*stop"),
        (b'"shape":[4,3]', b'"shape":[3,4]', r"its checksum must be \d+, got \d+"),
    ],
)
def test_a_changed_header(tmp_path: Path, before: bytes, after: bytes, message: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, _checkpoint())
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*safetensors$"):
        load_checkpoint(tmp_path / "checkpoint.safetensors")


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"checkpoint": "3"}, {"checkpoint": "{}"}]
)
def test_a_file_of_another_program(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(CheckpointError, match="holds no format 'deq_kernels checkpoint 1'"):
        load_checkpoint(path)


def test_metadata_that_is_no_json(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, {"checkpoint": "pt"})
    with pytest.raises(CheckpointError, match="must be JSON, but it is not"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": "1"}, "epoch in its metadata must be a whole number"),
        ({"step": -1}, "step in its metadata must be a whole number"),
        ({"step": 10**400}, "step in its metadata must be a whole number"),
        ({"config": [1]}, "config in its metadata must be an object"),
        ({"param_groups": {}}, "param_groups in its metadata must be a list of objects"),
        ({"param_groups": [1]}, "param_groups in its metadata must be a list of objects"),
    ],
)
def test_values_of_another_kind(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """With a checksum that fits, as a program may write it."""
    path = tmp_path / "checkpoint.safetensors"
    checkpoint = replace(_checkpoint(), **{k: v for k, v in change.items() if k != "param_groups"})
    groups = change.get("param_groups", checkpoint.optimizer["param_groups"])
    optimizer = {**checkpoint.optimizer, "param_groups": groups}
    save_checkpoint(path, replace(checkpoint, optimizer=optimizer))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["optimizer.x.exp_avg", "optimizer.0", f"optimizer.{'9' * 400}.a"])
def test_names_of_another_kind(tmp_path: Path, name: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint = _checkpoint()
    rest = name.removeprefix("optimizer.").partition(".")
    state = {rest[0]: {rest[2]: torch.ones(1)}}
    save_checkpoint(path, replace(checkpoint, optimizer={**checkpoint.optimizer, "state": state}))
    with pytest.raises(CheckpointError, match=r"not optimizer\.NUMBER\.NAME"):
        load_checkpoint(path)


@pytest.mark.parametrize("depth", [300, 100_000])
def test_metadata_that_nests_deeply(tmp_path: Path, depth: int) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "checkpoint.safetensors"
    nested = "[" * depth + "]" * depth
    save_file({"a": torch.ones(2)}, path, metadata={"checkpoint": nested})
    with pytest.raises(CheckpointError, match=r"too deeply|no checkpoint of"):
        load_checkpoint(path)


def test_every_difference_of_the_config_is_named() -> None:
    checkpoint = _checkpoint()
    check_config(checkpoint, checkpoint.config)
    with pytest.raises(CheckpointError) as raised:
        check_config(checkpoint, {"gradient": "jfb", "rtol": 1e-3, "seed": 1})
    message = str(raised.value)
    assert "gradient: 'shine' in the checkpoint, 'jfb' now" in message
    assert "seed: None in the checkpoint, 1 now" in message
    assert "rtol" not in message
