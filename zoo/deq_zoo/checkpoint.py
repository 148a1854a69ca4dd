"""Checkpoints in one safetensors file: tensors, and JSON metadata. Nothing in it is executable."""

import json
import reprlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from deq_zoo.files import write_atomically
from deq_zoo.json_text import parse_json

FORMAT = "deq_kernels checkpoint 1"
METADATA = "checkpoint"
METADATA_KEYS = {"format", "epoch", "step", "config", "param_groups", "checksum"}
LARGEST = 2**53
"""No run takes so many epochs or steps."""


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
        OSError: the file cannot be written.
    """
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
    }
    entry = json.dumps({**metadata, "checksum": _checksum(tensors, metadata)})
    # One entry only: safetensors writes several in random order, and equal runs give equal files.
    write_atomically(path, save(tensors, {METADATA: entry}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a file that `save_checkpoint` wrote.

    Raises:
        ImportError: safetensors is not installed.
        CheckpointError: the file is missing, damaged, or not a checkpoint of this package.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            entries = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    # Errors of safetensors' own, of the system, and of torch where it has no such dtype.
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error})") from error
    metadata = _parse_metadata(path, entries)
    expected = metadata.pop("checksum")
    try:
        found = _checksum(tensors, metadata)
    except (RuntimeError, TypeError) as error:  # no bytes of such a dtype; nested too deeply
        raise CheckpointError(f"{path} is damaged: it has no checksum ({error})") from error
    if expected != found:
        raise CheckpointError(
            f"{path} is damaged: its checksum must be {reprlib.repr(expected)}, got {found}"
        )
    return Checkpoint(
        epoch=metadata["epoch"],
        step=metadata["step"],
        config=metadata["config"],
        model=_without_prefix("model", tensors),
        optimizer={
            "state": _optimizer_state(path, tensors),
            "param_groups": metadata["param_groups"],
        },
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
        metadata = parse_json(entries.get(METADATA, "{}"))
    except ValueError as error:
        raise CheckpointError(
            f"the metadata of {path} must be JSON, but it is not ({error})"
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no checkpoint of this version: its metadata holds no format {FORMAT!r}"
        )
    if metadata.keys() != METADATA_KEYS:
        raise CheckpointError(
            f"{path} is damaged: its metadata must hold {', '.join(sorted(METADATA_KEYS))}, got "
            f"{', '.join(sorted(metadata))}"
        )
    for name in ("epoch", "step"):
        if type(metadata[name]) is not int or not 0 <= metadata[name] < LARGEST:
            raise _damaged(path, name, f"a whole number from 0 to {LARGEST - 1}")
    if not isinstance(metadata["config"], dict):
        raise _damaged(path, "config", "an object")
    groups = metadata["param_groups"]
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise _damaged(path, "param_groups", "a list of objects")
    return metadata


def _damaged(path: Path, name: str, contract: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {name} in its metadata must be {contract}")


def _optimizer_state(path: Path, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """What the optimiser keeps of each parameter, by the parameter's number."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _without_prefix("optimizer", tensors).items():
        index, _, key = name.partition(".")
        if not (index.isdecimal() and len(index) < 10 and key):
            raise CheckpointError(
                f"{path} is damaged: it holds a tensor optimizer.{name}, not optimizer.NUMBER.NAME"
            )
        state.setdefault(int(index), {})[key] = value
    return state


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value.contiguous() for name, value in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "."
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> int:
    """CRC-32 over everything: safetensors itself notices a short file, not a changed one."""
    crc = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        header = f"{name} {value.dtype} {tuple(value.shape)}"
        data = value.reshape(-1).view(torch.uint8).numpy().data
        crc = zlib.crc32(data, zlib.crc32(header.encode(), crc))
    return crc
