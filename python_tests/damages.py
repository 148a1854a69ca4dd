"""Files damaged in every way that comes to mind, the same ones for the same seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[bytes, random.Random], bytes]

HUGE = (
    b"9" * 5000,
    b"-9223372036854775809",
    b"1e400",
    b"1" + b"0" * 400,
    b"nan",
    b"-1",
    b"99999999",
)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 8, 64)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_early(data: bytes, rng: random.Random) -> bytes:
    """Headers stand at the beginning."""
    return _flip(data[:200], rng) + data[200:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] * rng.choice((1, 3)) + data[end:]


def _lose(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[end:]


def _shuffle_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def _number(data: bytes, rng: random.Random) -> bytes:
    """One number becomes another, without limits."""
    digits = [i for i, byte in enumerate(data) if 48 <= byte < 58]
    if not digits:
        return data
    at = rng.choice(digits)
    return data[:at] + rng.choice(HUGE) + data[at + 1 :]


def _value(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON text becomes one of another kind."""
    places = [i for i, byte in enumerate(data) if byte in b":,["]
    if not places:
        return data
    at = rng.choice(places) + 1
    value = rng.choice((b"null,", b"[[]],", b'{"a":1},', b'"\\ud800",', b"true,", b"1e308,"))
    return data[:at] + value + data[at:]


def _no_text(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((b"\xff\xfe", b"\x00", b"\xed\xa0\x80", b"\r")) + data[at:]


def _nested(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"(" * 9000)) + data


def _noise(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 8, 64))] + rng.randbytes(300)


def _nothing(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\n", b" "))


DAMAGES: tuple[Damage, ...] = (
    *(_truncate, _flip, _flip_early, _repeat, _lose, _shuffle_lines, _number, _value, _no_text),
    *(_nested, _noise, _nothing),
)


def damage_one(folder: Path, rng: random.Random) -> str:
    """Damage a file of a folder; what was done, in words."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        return "nothing is left"
    path = rng.choice(files)
    if rng.random() < 0.03:
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir()
        return f"{path.name} gone, or a folder"
    damage = rng.choice(DAMAGES)
    path.write_bytes(damage(path.read_bytes(), rng))
    return f"{path.name}: {damage.__name__}"


def survives(
    whole: Path, work: Path, load: Callable[[Path], object], error: type[Exception], count: int
) -> None:
    """Load `count` damaged copies of a folder: each is loaded, or refused with the one error.

    Raises:
        AssertionError: another error came; it names the seed and the damage.
    """
    refused = 0
    for seed in range(count):
        rng = random.Random(seed)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(whole, work)
        done = [damage_one(work, rng) for _ in range(rng.choice((1, 1, 2)))]
        try:
            load(work)
        except error:
            refused += 1
        except Exception as other:
            raise AssertionError(f"seed {seed}, {done}: {other!r:.300}") from other
    assert refused > count // 4, "most damages should be noticed"
