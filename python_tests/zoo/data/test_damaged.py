"""Whatever is wrong with a file, its reader says so in one error, in bounded memory and time."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from deq_zoo.data import DatasetError, load_image_folder, load_ppi, load_tu
from deq_zoo.data.image_folder import read_image
from deq_zoo.json_text import parse_json

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.skipif(
    not all(map(find_spec, ("PIL", "safetensors"))), reason="needs packages of the zoo"
)
def test_damaged_files_of_every_kind(tmp_path: Path) -> None:
    """In a process whose memory and time are limited; it prints what it was about to damage."""
    command = [sys.executable, "-m", "python_tests.zoo.data.damaged_loaders", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nests lists or objects too deeply"),
        ("9" * 5000, "digits"),
        ("{", "Expecting property name"),
        (b"\xff\xfe[", "utf-16"),
    ],
)
def test_json_that_is_none(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_png(30_000, 30_000), "damaged or none: Image size"),
        (_png(10_000, 9_900), "damaged or none: Image size"),  # of which Pillow only warns
        (_png(2, 50_000), "its sides are 2 and 50000 long"),
        (_png(50, 50, b"nothing"), "damaged or none"),
        (b"GIF89a" + bytes(100), "damaged or none"),
    ],
)
def test_images_that_are_none(tmp_path: Path, data: bytes, message: str) -> None:
    pytest.importorskip("PIL")
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=message):
        read_image(path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line_from_a_worker_too(tmp_path: Path, workers: int) -> None:
    pytest.importorskip("PIL")
    for part in ("train/a", "val/a"):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / "1.png").write_bytes(b"damaged")
    split = load_image_folder(tmp_path, size=8).train
    with pytest.raises(DatasetError, match="damaged or none") as raised:
        list(split.batches(1, workers=workers))
    assert "Traceback" not in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path))


def test_node_labels_ask_for_no_more_memory_than_their_files_warrant(tmp_path: Path) -> None:
    """A megabyte of text would take 10 GB."""
    nodes = 250_000
    labels = "".join(f"{node % 10_000}\n" for node in range(nodes))
    for name, text in (
        ("A", ""),
        ("graph_indicator", "1\n" * (nodes - 1) + "2\n"),
        ("graph_labels", "1\n2\n"),
        ("node_labels", labels),
    ):
        (tmp_path / f"DS_{name}.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"10000 for 250000 nodes take 10,000,000,000 bytes"):
        load_tu(tmp_path)
    (tmp_path / "DS_graph_labels.txt").write_text("1\n2\n" * nodes, encoding="utf-8")
    with pytest.raises(DatasetError, match="at most a label per node, 250000"):
        load_tu(tmp_path)


@pytest.fixture
def ppi(tmp_path: Path) -> Path:
    """Two proteins in one graph."""
    np.save(tmp_path / "feats.npy", np.ones((2, 1)))
    (tmp_path / "class_map.json").write_text('{"0": [0], "1": [1]}', encoding="utf-8")
    role = {"tr": [0], "va": [1], "te": [1]}
    (tmp_path / "role.json").write_text(json.dumps(role), encoding="utf-8")
    for name in ("adj_full", "adj_train"):
        np.savez(
            tmp_path / f"{name}.npz",
            indptr=np.array([0, 1, 2]),
            indices=np.array([1, 0]),
            shape=np.array([2, 2]),
        )
    load_ppi(tmp_path)
    return tmp_path


def test_an_archive_that_unpacks_to_gigabytes(ppi: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": (2**27,)}
    )
    with zipfile.ZipFile(ppi / "adj_full.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        names = archive.namelist()
        assert "indices.npy" in names
    with zipfile.ZipFile(ppi / "adj_full.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(name, "w") as member:
                member.write(header.getvalue())
                for _ in range(32):
                    member.write(bytes(2**20))
    with pytest.raises(DatasetError, match=r"its arrays take .* bytes, where"):
        load_ppi(ppi)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("class_map.json", json.dumps({"0": [0], "1": [10**400]}), "nodes' labels"),
        ("class_map.json", "[" * 100_000, "is no JSON: it nests"),
        ("role.json", '{"tr": [true, false], "va": [1], "te": [1]}', "lists of nodes"),
        ("feats.npy", "\x93NUMPY\x01\x00" + "(" * 9000, "none of NumPy's formats"),
    ],
)
def test_values_of_another_kind(ppi: Path, name: str, text: str, message: str) -> None:
    (ppi / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=message):
        load_ppi(ppi)


def test_an_array_that_declares_more_than_the_file_holds(ppi: Path) -> None:
    path = ppi / "feats.npy"
    path.write_bytes(path.read_bytes().replace(b"(2, 1)", b"(2**0)").replace(b"(2**0)", b"(9**9,"))
    with pytest.raises(DatasetError, match="none of NumPy's formats"):
        load_ppi(ppi)
    np.save(path, np.ones((2, 0)))
    with pytest.raises(DatasetError, match=r"numbers \[rows, columns\]; got \(2, 0\)"):
        load_ppi(ppi)
