"""Directories of grain tables: in the file, and apart."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdstash.errors import FormatError
from fdstash.formats.vmdk import grain_directory
from fdstash.formats.vmdk.grain_directory import Directory
from tests.support.effort import seconds_here


def directory(*entries: int, table_bytes: int = 2048, field: str = "gdOffset") -> Directory:
    data = grain_directory.encode(entries)
    return Directory("disk.vmdk", field, 4096, grain_directory.decode(data), table_bytes)


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_entries_read_as_they_were_written(entries: list[int]) -> None:
    data = grain_directory.encode(entries)
    assert len(data) == 4 * len(entries)
    assert list(grain_directory.decode(data)) == entries


def test_the_first_entry_that_leaves_the_file_is_named() -> None:
    grain_directory.check(directory(0, 96), 100 * 512)
    for wrong in (97, 2**32 - 1):
        with pytest.raises(FormatError, match=f"grain table 2 at sector {wrong}") as caught:
            grain_directory.check(directory(1, 0, wrong, wrong), 100 * 512)
        assert caught.value.offset == 4096 + 8
        assert caught.value.field == "gdOffset entry"
    grain_directory.check(directory(), 0)
    grain_directory.check(directory(0, 0), 0)


def test_no_table_is_in_the_header() -> None:
    grain_directory.check(directory(4, 0), 1 << 20, first=4)
    with pytest.raises(FormatError, match="is in the header"):
        grain_directory.check(directory(4, 3), 1 << 20, first=4)


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        ((10, 14), (18, 22), True),
        ((14, 10), (22, 18), True),
        ((10, 13), (18, 22), False),
        ((10, 10), (18, 22), False),
        ((10, 14), (17, 22), False),
        ((10, 14), (10, 14), False),
        ((7, 14), (18, 22), False),  # over the metadata at 5 to 8
        ((2, 14), (18, 22), False),
        ((0, 0), (0, 0), True),
    ],
)
def test_tables_that_share_sectors_are_found(
    first: tuple[int, ...], second: tuple[int, ...], fits: bool
) -> None:
    both = [directory(*first), directory(*second, field="rgdOffset")]
    taken = [(0, 1), (5, 8)]
    if fits:
        grain_directory.check_apart(both, taken, 1 << 20)
        return
    with pytest.raises(FormatError, match="lies over other metadata") as caught:
        grain_directory.check_apart(both, taken, 1 << 20)
    assert caught.value.offset is not None


def test_more_tables_than_the_file_has_room_for_are_refused_at_once() -> None:
    with pytest.raises(FormatError, match="more than the file has room for"):
        grain_directory.check_apart([directory(*[1] * 100)], [], 99 * 2048)


@pytest.mark.slow
def test_the_largest_directory_is_judged_in_bounded_time() -> None:
    start = time.process_time()
    found = Directory(
        "disk.vmdk",
        "gdOffset",
        0,
        grain_directory.decode(grain_directory.encode(range(8, (8 << 20) + 8))),
        512,
    )
    grain_directory.check(found, 1 << 40)
    grain_directory.check_apart([found], [(0, 8)], 1 << 40)
    assert time.process_time() - start < seconds_here(30)
