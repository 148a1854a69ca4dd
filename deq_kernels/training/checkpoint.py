"""Checkpoints in one safetensors file: tensors, and JSON metadata. Nothing in it is executable."""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deq_kernels.data.optional import optional_import

FORMAT = "deq_kernels checkpoint 1"
METADATA = "checkpoint"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or belongs to something else."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The whole state of a training run between two epochs.

    Attributes:
        epoch, step: finished epochs and optimiser steps.
        config: of the run, as JSON values.
        model: `state_dict` of the model.
        optimizer: `state_dict` of the optimiser; its state may hold tensors only.
        rng: states of the random number generators, by name.
    """

    epoch: int
    step: int
    config: dict[str, Any]
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    rng: Mapping[str, Tensor]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file; a crash leaves either the old one or the new one, never a part.

    Raises:
        ImportError: safetensors is not installed.
    """
    with optional_import(extra="train"):
        from safetensors.torch import save_file

    tensors = {
        **_prefixed("model", checkpoint.model),
        **_prefixed("rng", checkpoint.rng),
        **{
            f"optimizer.{index}.{name}": value.contiguous()
            for index, values in checkpoint.optimizer["state"].items()
            for name, value in values.items()
        },
    }
    metadata = {
        "format": FORMAT,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "config": checkpoint.config,
        "param_groups": checkpoint.optimizer["param_groups"],
        "checksum": _checksum(tensors),
    }
    unfinished = path.with_name(path.name + ".tmp")
    # One entry only: safetensors writes several in random order, and equal runs give equal files.
    save_file(tensors, unfinished, {METADATA: json.dumps(metadata)})
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a file that `save_checkpoint` wrote.

    Raises:
        ImportError: safetensors is not installed.
        CheckpointError: the file is missing, damaged, or not a checkpoint of this package.
    """
    with optional_import(extra="train"):
        from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            entries = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); start the run anew"
        ) from error
    metadata = _parse_metadata(path, entries)
    if metadata["checksum"] != _checksum(tensors):
        raise CheckpointError(f"{path} is damaged: its checksum does not match; start the run anew")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _without_prefix("optimizer", tensors).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    return Checkpoint(
        epoch=metadata["epoch"],
        step=metadata["step"],
        config=metadata["config"],
        model=_without_prefix("model", tensors),
        optimizer={"state": state, "param_groups": metadata["param_groups"]},
        rng=_without_prefix("rng", tensors),
    )


def check_config(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint belongs to a run with this config.

    Raises:
        CheckpointError: naming every entry that differs.
    """
    names = sorted({*checkpoint.config, *config})
    differences = [
        f"{name}: {checkpoint.config.get(name)!r} in the checkpoint, {config.get(name)!r} now"
        for name in names
        if checkpoint.config.get(name) != config.get(name)
    ]
    if differences:
        raise CheckpointError(
            "the checkpoint comes from a run with other options; resume with the same ones, or "
            f"write to another folder ({'; '.join(differences)})"
        )


def _parse_metadata(path: Path, entries: Mapping[str, str]) -> dict[str, Any]:
    try:
        metadata = json.loads(entries.get(METADATA, "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"the metadata of {path} is not JSON: {error}") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no checkpoint of this version: its metadata holds no format {FORMAT!r}"
        )
    return metadata


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value.contiguous() for name, value in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "."
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 over names and bytes: safetensors itself notices a short file, not a changed one."""
    crc = 0
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().reshape(-1).view(torch.uint8)
        crc = zlib.crc32(value.numpy().data, zlib.crc32(name.encode(), crc))
    return crc
