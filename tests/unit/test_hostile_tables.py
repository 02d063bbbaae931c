"""Hostile tables of sparse extents, and files that change under an open image.

What is wrong is an error of the requests that meet it; others are served.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FormatError, ImageIOError, ReopenError
from fdstash.formats.vmdk import sparse_header
from tests.support.bounded import opened
from tests.support.grain_files import (
    MAKERS,
    SECTOR,
    descriptor,
    hosted,
    one_extent,
    space_efficient,
)
from tests.support.refusals import refused

# Under a sanitizer neither limit means anything.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_descriptor_leaks")]

GRAINS = 24
GRAIN = 4096
TEXT = descriptor(f'RW {GRAINS * 8} SPARSE "disk.vmdk"', create_type="monolithicSparse")
EVERY_GRAIN = [number * GRAIN for number in range(GRAINS)]
CONTENT = {0: b"first" * 9, 5: b"sixth" * 9, GRAINS - 1: b"last" * 9}


def _errors(found: dict[str, Any]) -> set[tuple[str, str]]:
    """What reads and writes have met; where there are writes, they meet what reads meet."""
    kinds = [
        {(each["error"], each["field"]) for each in found[what] if isinstance(each, dict)}
        for what in ("reads", "writes")
    ]
    assert not found["writes"] or kinds[0] == kinds[1]
    return kinds[0]


def monolithic(folder: Path, data: bytes) -> Path:
    path = folder / "disk.vmdk"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("SPARSE", 0xFFFFFFFF),
        ("SPARSE", 2),  # in a table
        ("VMFSSPARSE", 0xFFFFFFFF),
        ("VMFSSPARSE", 3),  # in the header
        ("VMFSSPARSE", 4),  # the directory
        ("SESPARSE", 0xF << 60),
        ("SESPARSE", 4 << 60),
        ("SESPARSE", 3 << 60 | 0xFFFFFFFFFFFF),
        ("SESPARSE", 1 << 48),
    ],
)
def test_a_bad_entry_fails_the_requests_that_meet_it_alone(
    tmp_path: Path, kind: str, entry: int, mode: str
) -> None:
    path = one_extent(tmp_path, kind, MAKERS[kind](GRAINS, {**CONTENT, 2: entry}), GRAINS * 8)
    if (kind, mode) == ("SESPARSE", "r+"):
        mode = "r"
    found = opened(path, mode, [0, 2 * GRAIN, 3 * GRAIN, 5 * GRAIN, -GRAIN])
    first, bad, empty, sixth, last = found["reads"]
    assert (first, empty, sixth, last) == ("firstfir", "", "sixthsix", "lastlast")
    assert (bad["error"], bad["file"]) == ("FormatError", str(tmp_path / "extent.bin"))
    assert bad["field"] == "cluster table entry"
    if mode == "r+":
        assert [each if isinstance(each, int) else each["error"] for each in found["writes"]] == [
            *(7, "FormatError", 7, 7, 7)
        ]


@pytest.mark.parametrize("call", ["zero", "unmap", "trim", "pwritev", "extents"])
def test_nothing_is_done_to_a_bad_entry(tmp_path: Path, call: str) -> None:
    path = one_extent(tmp_path, "SPARSE", hosted(GRAINS, {2: 0xFFFFFFFF}), GRAINS * 8)
    before = (tmp_path / "extent.bin").read_bytes()
    with fdstash.open(path, "r+", mark=False) as image:
        calls: dict[str, Callable[[], object]] = {
            "zero": lambda: image.zero(GRAIN, 2 * GRAIN),
            "unmap": lambda: image.zero(GRAIN, 2 * GRAIN, unmap=True),
            "trim": lambda: image.trim(GRAIN, 2 * GRAIN),
            "pwritev": lambda: image.pwritev([b"a", b"b"], 2 * GRAIN + 7),
            "extents": lambda: list(image.extents(GRAIN, 2 * GRAIN)),
        }
        with pytest.raises(FormatError, match="cluster 2"):
            calls[call]()
    assert (tmp_path / "extent.bin").read_bytes() == before


def test_a_request_over_a_bad_entry_does_what_comes_before_it_and_fails(tmp_path: Path) -> None:
    path = one_extent(tmp_path, "SPARSE", hosted(GRAINS, {1: 0xFFFFFFFF}), GRAINS * 8)
    with fdstash.open(path, "r+") as image:
        with pytest.raises(FormatError):
            image.pread(image.size, 0)
        with pytest.raises(FormatError):
            image.pwrite(b"x" * 3 * GRAIN, 0)
        assert image.pread(GRAIN, 2 * GRAIN) == bytes(GRAIN)


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("redundant", [False, True])
@pytest.mark.parametrize("sector", [0xFFFFFFFF, 1 << 20])
def test_a_table_outside_the_file_is_refused(
    tmp_path: Path, sector: int, redundant: bool, mode: str
) -> None:
    data = bytearray(hosted(GRAINS, CONTENT, text=TEXT))
    header = sparse_header.parse(data, "")
    at = (header.rgd_offset if redundant else header.gd_offset) * SECTOR + 4
    data[at : at + 4] = sector.to_bytes(4, "little")
    found = opened(monolithic(tmp_path, bytes(data)), mode, EVERY_GRAIN)
    if redundant and mode == "r":
        assert _errors(found) == set()
    else:
        assert _errors(found) == {
            ("FormatError", "rgdOffset entry" if redundant else "gdOffset entry")
        }


def _with_directory(entries: list[int]) -> bytes:
    data = bytearray(hosted(GRAINS, CONTENT, redundant=False, text=TEXT))
    gd = sparse_header.parse(data, "").gd_offset * SECTOR
    for number, entry in enumerate(entries):
        struct.pack_into("<I", data, gd + 4 * number, entry)
    return bytes(data)


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize(("kind", "sector"), [("SPARSE", 1), ("VMFSSPARSE", 1), ("VMFSSPARSE", 3)])
def test_a_table_in_the_header_or_the_descriptor_is_refused(
    tmp_path: Path, kind: str, sector: int, mode: str
) -> None:
    """A guest's write would change what the image is."""
    if kind == "SPARSE":
        path = monolithic(tmp_path, _with_directory([0, sector]))
    else:
        data = bytearray(MAKERS[kind](GRAINS, CONTENT))
        data[4 * SECTOR : 4 * SECTOR + 4] = sector.to_bytes(4, "little")
        path = one_extent(tmp_path, kind, bytes(data), GRAINS * 8)
    found = opened(path, mode, EVERY_GRAIN)
    assert _errors(found) == {("FormatError", "gdOffset entry")}


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("sector", [2, 3, 4], ids=["directory", "table", "another table"])
def test_tables_over_other_metadata_or_each_other_harm_nobody(
    tmp_path: Path, sector: int, mode: str
) -> None:
    """What is read is odd, or an error; nothing is read from, or written to, another file."""
    path = monolithic(tmp_path, _with_directory([sector] * 6))
    found = opened(path, mode, [n * GRAIN for n in range(GRAINS)])
    for outcome in (*found.get("reads", []), *found.get("writes", [])):
        assert isinstance(outcome, str | int) or "Error" in outcome["family"], outcome


@pytest.mark.parametrize(
    ("kind", "at", "value"),
    [
        ("SPARSE", 12, GRAINS * 8 - 8),
        ("SPARSE", 20, 16),
        ("SPARSE", 44, 8),
        ("SPARSE", 0, 0),
        ("VMFSSPARSE", 12, GRAINS * 8 - 8),
        ("VMFSSPARSE", 16, 16),
        ("VMFSSPARSE", 20, 5),
        ("VMFSSPARSE", 0, 0),
    ],
)
def test_a_header_that_changed_is_refused_on_the_way_to_writing(
    tmp_path: Path, kind: str, at: int, value: int
) -> None:
    path = one_extent(tmp_path, kind, MAKERS[kind](GRAINS, CONTENT), GRAINS * 8)
    with fdstash.open(path) as image:
        with (tmp_path / "extent.bin").open("r+b") as file:
            file.seek(at)
            file.write(value.to_bytes(4, "little"))
        error = refused(image, mode="r+")
        assert (error.phase, error.file) == ("prove", str(tmp_path / "extent.bin"))
        assert isinstance(error.__cause__, FormatError)


def test_tables_that_changed_are_read_again_on_the_way_to_writing(tmp_path: Path) -> None:
    path = one_extent(tmp_path, "SPARSE", hosted(GRAINS, CONTENT), GRAINS * 8)
    with fdstash.open(path) as image:
        assert image.pread(5, 0) == b"first"
        with fdstash.open(path, "r+", lock=False) as other:
            other.pwrite(b"after", 8 * GRAIN)
        image.reopen(mode="r+")
        assert image.pread(5, 8 * GRAIN) == b"after"


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, mode) for kind in MAKERS for mode in ("r", "r+") if (kind, mode) != ("SESPARSE", "r+")],
)
@pytest.mark.parametrize("size", [0, 512, 2048, 5000, 8192])
def test_a_file_that_is_cut_off_under_the_image_is_an_error_and_no_more(
    tmp_path: Path, kind: str, size: int, mode: str
) -> None:
    path = one_extent(tmp_path, kind, MAKERS[kind](GRAINS, CONTENT), GRAINS * 8)
    for loaded in (False, True):
        with fdstash.open(path, mode) as image:
            whole = (tmp_path / "extent.bin").read_bytes()
            if loaded:
                image.pread(image.size, 0)
            os.truncate(tmp_path / "extent.bin", size)
            for number in range(GRAINS):
                for call in (
                    lambda at=number * GRAIN: image.pread(GRAIN, at),
                    lambda at=number * GRAIN: image.pwrite(b"x", at),
                    image.flush,
                ):
                    try:
                        call()
                    except (FormatError, ImageIOError) as error:
                        assert str(error)
            try:
                image.reopen(mode="r" if mode == "r+" else "r+")
            except ReopenError as error:
                assert error.rolled_back
        (tmp_path / "extent.bin").write_bytes(whole)


def test_a_directory_that_is_cut_off_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    path = one_extent(tmp_path, "SESPARSE", space_efficient(GRAINS, CONTENT), GRAINS * 8)
    with fdstash.open(path) as image:
        os.truncate(tmp_path / "extent.bin", 8 * SECTOR)
        with pytest.raises(FormatError) as caught:
            image.pread(5, 0)
        assert caught.value.field == "grain directory entry"
