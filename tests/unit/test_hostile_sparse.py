"""Hostile sparse extents through `fdstash.open`: answered within a second and 64 MiB.

Refused at the open, or where a read or a write meets what is wrong; the rest is served.
"""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FormatError
from fdstash.formats.vmdk.sesparse import Area
from fdstash.formats.vmdk.sparse_header import MAX_COMPRESSED_GRAIN, MAX_GD_BYTES, Flag
from tests.support.bounded import opened
from tests.support.disks import noise
from tests.support.grain_files import (
    MAKERS,
    SECTOR,
    descriptor,
    hosted,
    one_extent,
    space_efficient,
)

# Under a sanitizer neither limit means anything.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_descriptor_leaks")]

TIB = 1 << 40
GRAINS = 24
GRAIN = 4096
CONTENT = {0: b"first" * 9, 5: b"sixth" * 9, GRAINS - 1: b"last" * 9}


def monolithic(sectors: int = GRAINS * 8) -> str:
    return descriptor(f'RW {sectors} SPARSE "disk.vmdk"', create_type="monolithicSparse")


def alone(folder: Path, data: bytes, size: int = 0) -> Path:
    path = folder / "disk.vmdk"
    path.write_bytes(data)
    if size:
        os.truncate(path, size)
    return path


# ------------------------------------------------------------------------- fields of headers

#: Where in the header each size, count and place is, and how wide it is.
NUMBERS = {
    "SPARSE": [
        *((at, 8) for at in (12, 20, 28, 36, 48, 56, 64)),
        *((4, 4), (8, 4), (44, 4), (72, 1), (73, 4), (77, 2)),
    ],
    "VMFSSPARSE": [(at, 4) for at in range(4, 32, 4)],
    "SESPARSE": [(at, 8) for at in range(8, 208, 8)],
}
EXTREMES = (0, 1, 2, 3, 7, 8, 127, 512, 513)


def extremes(width: int) -> Iterator[int]:
    top = 1 << 8 * width
    yield from (n for n in (*EXTREMES, top >> 1, (top >> 1) - 1, top >> 9, top - 1, top - 8))


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("kind", MAKERS)
def test_every_extreme_of_every_field_of_a_header_is_answered(
    tmp_path: Path, kind: str, mode: str
) -> None:
    """In this process, for speed; only errors of this package may come out."""
    good = MAKERS[kind](GRAINS, CONTENT)
    path = one_extent(tmp_path, kind, good, GRAINS * 8)
    served = refusals = 0
    for at, width in NUMBERS[kind]:
        for value in extremes(width):
            data = bytearray(good)
            data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
            (tmp_path / "extent.bin").write_bytes(data)
            try:
                with fdstash.open(path, mode) as image:
                    assert image.size == GRAINS * GRAIN
                    served += touched(image)
            except FormatError as error:
                refusals += 1
                assert error.file
                assert error.field
    assert refusals > len(NUMBERS[kind])
    assert served > 0 or (kind, mode) == ("SESPARSE", "r+")


def touched(image: fdstash.Image) -> bool:
    """Read every grain, and write to every third, where there is no error; whether any was read."""
    any_read = False
    for number in range(GRAINS):
        try:
            assert len(image.pread(GRAIN, number * GRAIN)) == GRAIN
            any_read = True
            if image.mode == "r+" and number % 3 == 0:
                image.pwrite(b"x", number * GRAIN)
        except FormatError as error:
            assert error.file
            assert error.field
    image.flush()
    return any_read


def _capacity(sectors: int) -> bytes:
    return hosted(1, {}, text=monolithic(sectors), capacity=sectors)


def _large(sectors: int, **fields: Any) -> bytes:
    """Both directories at the front of a file of zeros, which whoever writes it adds."""
    room = MAX_GD_BYTES // SECTOR
    places = {"gd_offset": 1024, "rgd_offset": 1024 + room, "overhead": 1024 + 2 * room}
    given = {"capacity": sectors, "grain": 128, "gtes_per_gt": 512, **places, **fields}
    return hosted(1, {}, text=monolithic(sectors), **given)[: 8 * SECTOR]


MOST = MAX_GD_BYTES // 4 * 512 * 128  # sectors that a directory has entries for
LARGE: dict[str, tuple[bytes, int]] = {
    "8 TiB": (_large(8 * TIB // SECTOR), 8 * TIB),
    "as much as a directory has entries for": (_large(MOST), MOST * SECTOR),
    "tables of one entry": (
        _large(MAX_GD_BYTES // 4 * 8, grain=8, gtes_per_gt=1),
        MAX_GD_BYTES // 4 * GRAIN,
    ),
}


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("case", LARGE)
def test_a_large_disk_is_served_in_little_memory(tmp_path: Path, case: str, mode: str) -> None:
    data, size = LARGE[case]
    path = alone(tmp_path, data, 64 << 20)
    found = opened(path, mode, [0, 1 << 20, size // 2, -4096])
    assert found["opened"] == size
    assert found["reads"] == [""] * 4
    assert found["writes"] == ([7] * 4 if mode == "r+" else [])


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize(
    "data",
    [
        _large(MOST + 1),
        _capacity((1 << 63) // SECTOR),
        _capacity((1 << 63) // SECTOR - 1),
        hosted(1, {}, text=monolithic(1 << 54), capacity=1 << 54, grain=1 << 21),
    ],
    ids=["a directory of more", "2**63", "2**63 - 512", "grains of 1 GiB"],
)
def test_a_disk_that_is_too_large_is_refused(tmp_path: Path, data: bytes, mode: str) -> None:
    found = opened(alone(tmp_path, data, 64 << 20), mode)
    assert "FormatError" in found["family"], found


def test_an_sesparse_disk_of_64_tib_is_served_in_little_memory(tmp_path: Path) -> None:
    sectors = 64 * TIB // SECTOR
    data = space_efficient(1, {}, capacity=sectors, grain_directory=Area(1 << 14, 1 << 16))
    path = one_extent(tmp_path, "SESPARSE", data, sectors)
    os.truncate(tmp_path / "extent.bin", 64 << 20)
    assert opened(path, "r", [0, -4096])["reads"] == ["", ""]


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_many_extents_that_are_each_as_large_as_can_be_are_refused(
    tmp_path: Path, mode: str
) -> None:
    """A directory alone is bounded; so are those of all extents together."""
    data = _large(MOST, descriptor_offset=0, descriptor_size=0)
    lines = []
    for number in range(64):
        (tmp_path / f"{number}.bin").write_bytes(data)
        os.truncate(tmp_path / f"{number}.bin", 64 << 20)
        lines.append(f'RW {MOST} SPARSE "{number}.bin"')
    (tmp_path / "disk.vmdk").write_text(descriptor(*lines))
    found = opened(tmp_path / "disk.vmdk", mode)
    assert (found["error"], found["field"]) == ("FormatError", "sectors"), found
    assert "directories" in found["text"]


# ----------------------------------------------------------------------------- a file as itself


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("kind", ["SPARSE", "VMFSSPARSE", "SESPARSE"])
def test_an_extent_that_is_not_of_the_kind_of_its_line_is_refused(
    tmp_path: Path, kind: str, mode: str
) -> None:
    for other, make in MAKERS.items():
        if other != kind:
            path = one_extent(tmp_path, kind, make(GRAINS, CONTENT), GRAINS * 8)
            found = opened(path, mode)
            assert "FormatError" in found["family"], found
            assert found["file"] == str(tmp_path / "extent.bin")


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("off", [-8, -1, 1, 1 << 40])
def test_a_line_and_a_header_that_differ_in_length_are_refused(
    tmp_path: Path, kind: str, off: int, mode: str
) -> None:
    path = one_extent(tmp_path, kind, MAKERS[kind](GRAINS, CONTENT), GRAINS * 8 + off)
    found = opened(path, mode)
    assert (found["error"], found["field"]) == ("FormatError", "sectors"), found


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("hard", [False, True], ids=["symlink", "hard link"])
def test_one_sparse_file_under_two_names_is_refused(tmp_path: Path, hard: bool, mode: str) -> None:
    path = one_extent(tmp_path, "SPARSE", hosted(GRAINS, CONTENT), GRAINS * 8)
    link = os.link if hard else os.symlink
    link(tmp_path / "extent.bin" if hard else "extent.bin", tmp_path / "again.bin")
    for access in ("RW", "RDONLY"):
        lines = (f'{access} {GRAINS * 8} SPARSE "{name}.bin"' for name in ("extent", "again"))
        path.write_text(descriptor(*lines))
        assert "FormatError" in opened(path, mode)["family"]


# --------------------------------------------------------------------------- compressed grains


def _compressed(body: bytes, *, grain: int, markers: bool, size: int | None = None) -> bytes:
    """One grain, at sector 512."""
    flags = Flag.NEWLINES | Flag.COMPRESSED | (Flag.MARKERS if markers else 0)
    data = hosted(
        *(1, {0: 512}),
        grain=grain,
        redundant=False,
        text=monolithic(grain),
        compression=1,
        flags=flags,
    )
    marker = struct.pack("<QI", 0, len(body) if size is None else size)
    return data.ljust(512 * SECTOR, b"\0") + (marker if markers else b"") + body


LARGEST = MAX_COMPRESSED_GRAIN * SECTOR


@pytest.mark.parametrize("markers", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        zlib.compress(bytes(1 << 30), 9),
        zlib.compress(zlib.compress(bytes(1 << 30), 9), 9),
        zlib.compress(bytes(LARGEST + 1), 9),
        zlib.compress(bytes(LARGEST - 1), 9),
        zlib.compress(noise(LARGEST), 0)[:-9],
        b"\0" * LARGEST,
        b"",
    ],
    ids=["1 GiB", "twice", "a byte more", "a byte less", "cut off", "zeros", "nothing"],
)
def test_a_grain_that_unpacks_to_anything_else_is_an_error(
    tmp_path: Path, body: bytes, markers: bool
) -> None:
    data = _compressed(body, grain=MAX_COMPRESSED_GRAIN, markers=markers)
    found = opened(alone(tmp_path, data, len(data) + (64 << 20)), "r", [0, -4096])
    for outcome in found["reads"]:
        assert "FormatError" in outcome["family"], found
        assert outcome["file"] == str(tmp_path / "disk.vmdk")


@pytest.mark.parametrize("markers", [False, True])
@pytest.mark.parametrize("level", [0, 9])
def test_the_largest_grain_is_unpacked_in_little_memory(
    tmp_path: Path, level: int, markers: bool
) -> None:
    body = zlib.compress(b"letters" + bytes(LARGEST - 7), level)
    data = _compressed(body, grain=MAX_COMPRESSED_GRAIN, markers=markers)
    found = opened(alone(tmp_path, data, len(data) + (64 << 20)), "r", [0, -4096])
    assert found["reads"] == ["letters", ""]


@pytest.mark.parametrize("size", [0, 1, 2 * GRAIN, 0x7FFFFFFF, 0xFFFFFFFF])
def test_the_extremes_of_a_marker_are_errors(tmp_path: Path, size: int) -> None:
    body = zlib.compress(noise(GRAIN))
    path = alone(tmp_path, _compressed(body, grain=8, markers=True, size=size))
    (outcome,) = opened(path, "r", [0])["reads"]
    assert "FormatError" in outcome["family"]


def test_a_large_grain_is_copied_in_little_memory(tmp_path: Path) -> None:
    """A byte written to a hole over a parent takes the rest of the grain along."""
    sectors = 1 << 16  # 32 MiB; the largest have 1 GiB
    parent = descriptor(f'RW {sectors} SPARSE "parent.vmdk"', cid=5)
    (tmp_path / "parent.vmdk").write_bytes(hosted(1, {}, grain=sectors, text=parent))
    child = descriptor(f'RW {sectors} SPARSE "disk.vmdk"', parent_cid=5, hint="parent.vmdk")
    path = alone(tmp_path, hosted(1, {}, grain=sectors, text=child))
    with fdstash.open(path, "r+") as image:
        with little_memory():
            image.pwrite(b"x", 12345)
            image.zero(1 << 24, 0)
        assert image.pread(2, 1 << 24) == b"\0\0"


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """The process gets no more than 16 MiB beyond what it has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (16 << 20), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
