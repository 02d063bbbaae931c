"""The headers of ESX's sparse extents, COWD and seSparse."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdstash.errors import FormatError, UnsupportedFormatError
from fdstash.formats.base import Kind
from fdstash.formats.vmdk import cowd, sesparse
from fdstash.formats.vmdk.cowd import CowdHeader
from fdstash.formats.vmdk.sesparse import GD_ENTRY, GT_ENTRY, Area, SeSparseHeader, VolatileHeader

U32 = st.integers(0, 2**32 - 1)
COWD = CowdHeader(capacity=10000, gd_entries=3, free_sector=5)
COWD_SIZE = 2560
SE = SeSparseHeader(
    capacity=1 << 17,
    volatile_header=Area(1, 1),
    journal_header=Area(2, 2),
    journal=Area(2048, 2048),
    grain_directory=Area(4096, 1),
    grain_tables=Area(4104, 64 * 4),
    free_bitmap=Area(4360, 8),
    back_map=Area(4368, 64),
    grains=Area(4432, 1 << 17),
)
SE_SIZE = 4432 * 512


def read_cowd(data: bytes, size: int = COWD_SIZE) -> CowdHeader:
    header = cowd.parse(data, "disk.vmdk")
    cowd.check(header, "disk.vmdk", size)
    return header


def read_se(data: bytes, size: int = SE_SIZE) -> SeSparseHeader:
    header = sesparse.parse(data, "disk.vmdk")
    sesparse.check(header, "disk.vmdk", size)
    return header


def put(data: bytes, form: str, offset: int, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, value)
    return bytes(changed)


def test_a_cowd_header_has_its_numbers_in_their_places() -> None:
    data = COWD.encode()
    assert len(data) == 2048
    assert struct.unpack_from("<4s7I", data) == (b"COWD", 1, 3, 10000, 1, 4, 3, 5)
    assert read_cowd(data) == COWD
    assert (COWD.gt_count, COWD.gt_coverage_bytes, COWD.gd_end) == (3, 2 << 20, 5)


def test_a_cowd_header_may_name_a_parent() -> None:
    child = replace(COWD, flags=2, parent_name=b"parent.vmdk", parent_generation=7, generation=8)
    child = replace(child, name=b"n" * 60, description=b"d", saved_generation=9, unclean=True)
    data = child.encode()
    assert data[32:43] == b"parent.vmdk"
    assert struct.unpack_from("<II", data, 1056) == (7, 8)
    assert struct.unpack_from("<I", data, 1648) == (1,)
    assert cowd.parse(data, "disk.vmdk") == child


@given(capacity=st.integers(1, 2**32 - 1), grain=st.integers(0, 21), gd=U32, free=U32, flags=U32)
def test_a_cowd_header_reads_as_it_was_written(
    capacity: int, grain: int, gd: int, free: int, flags: int
) -> None:
    header = CowdHeader(capacity, 1 << grain, gd, free_sector=free, flags=flags)
    header = replace(header, gd_entries=header.gt_count)
    assert cowd.parse(header.encode(), "disk.vmdk") == header


@pytest.mark.parametrize(
    ("offset", "value", "guilty"),
    [
        (0, 0, "magicNumber"),
        (4, 2, "version"),
        (12, 0, "numSectors"),
        (12, 2**32 - 1, "numGDEntries"),
        (16, 0, "grainSize"),
        (16, 3, "grainSize"),
        (16, 2**22, "grainSize"),
        (20, 0, "gdOffset"),
        (20, 3, "gdOffset"),
        (20, 5, "gdOffset"),
        (20, 2**32 - 1, "gdOffset"),
        (24, 2, "numGDEntries"),
        (24, 2**32 - 1, "numGDEntries"),
        (24, 200, "gdOffset"),
        (28, 4, "freeSector"),
    ],
)
def test_what_is_wrong_in_a_cowd_header_is_named(offset: int, value: int, guilty: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_cowd(put(COWD.encode(), "<I", offset, value))
    assert caught.value.field == guilty
    assert caught.value.offset is not None
    assert isinstance(caught.value, UnsupportedFormatError) == (guilty == "version")


def test_a_cowd_header_that_is_cut_off_is_refused() -> None:
    with pytest.raises(FormatError, match="only 2047"):
        cowd.parse(COWD.encode()[:2047], "disk.vmdk")


@pytest.mark.parametrize(
    "wrong",
    [
        {"flags": 2, "parent_name": b"x" * 1025},
        {"name": b"x" * 61},
        {"description": b"a\0b"},
        {"capacity": 2**32},
    ],
)
def test_a_cowd_header_that_cannot_be_written_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(FormatError, match="cannot be written"):
        replace(COWD, **wrong).encode()  # type: ignore[arg-type]


def test_an_sesparse_header_reads_as_it_was_written() -> None:
    data = SE.encode()
    assert len(data) == 512
    assert struct.unpack_from("<4Q", data) == (0xCAFEBABE, 0x200000001, 1 << 17, 8)
    assert struct.unpack_from("<2Q", data, 128) == (4096, 1)
    assert read_se(data) == SE
    assert (SE.grain_count, SE.gt_count, SE.gd_bytes) == (1 << 14, 4, 32)


@pytest.mark.parametrize(
    ("place", "value", "guilty"),
    [
        (0, 0, "magic"),
        (2, 0, "capacity"),
        (2, 2**55, "capacity"),
        (2, 2**30, "grainDirectory size"),
        (10, 0, "volatileHeader offset"),
        (11, 0, "volatileHeader offset"),
        (10, 2**64 - 1, "volatileHeader offset"),
        (12, 1, "journalHeader offset"),
        (16, 2**60, "grainDirectory offset"),
        (17, 0, "grainDirectory size"),
        (17, 2**64 - 1, "grainDirectory size"),
        (18, 4096, "grainTables offset"),
        (19, 2**64 - 1, "grainTables offset"),
        (24, 4431, "grains offset"),
    ],
)
def test_what_is_wrong_in_an_sesparse_header_is_named(place: int, value: int, guilty: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_se(put(SE.encode(), "<Q", 8 * place, value))
    assert caught.value.field == guilty
    assert caught.value.offset is not None


@pytest.mark.parametrize("place", [1, 3, 4, 5, 6, 7, 8, 9, 26, 63])
def test_what_is_not_known_of_sesparse_is_unsupported(place: int) -> None:
    with pytest.raises(UnsupportedFormatError) as caught:
        read_se(put(SE.encode(), "<Q", 8 * place, 77))
    assert caught.value.offset == 8 * place


def test_a_volatile_header_reads_as_it_was_written() -> None:
    header = VolatileHeader(4, 17)
    assert sesparse.parse_volatile(header.encode(), SE, "disk.vmdk") == header


def test_a_journal_that_is_to_be_replayed_is_refused() -> None:
    with pytest.raises(UnsupportedFormatError, match="journal") as caught:
        sesparse.parse_volatile(VolatileHeader(replay=True).encode(), SE, "disk.vmdk")
    assert caught.value.offset == 512 + 24


@pytest.mark.parametrize("data", [b"", bytes(512), VolatileHeader().encode()[:-1] + b"x"])
def test_another_volatile_header_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        sesparse.parse_volatile(data, SE, "disk.vmdk")


def test_entries_of_an_sesparse_directory() -> None:
    assert GD_ENTRY.decode(0, SE) == (Kind.HOLE, 0)
    assert GD_ENTRY.decode(0x1000000000000000, SE) == (Kind.DATA, 4104 * 512)
    assert GD_ENTRY.decode(0x1000000000000003, SE) == (Kind.DATA, 4104 * 512 + 3 * 32768)
    for damaged in (1, 2 << 60, 0x1000000100000000, 2**64 - 1):
        assert GD_ENTRY.decode(damaged, SE) is None


def test_entries_of_an_sesparse_table() -> None:
    assert GT_ENTRY.decode(0, SE) == (Kind.HOLE, 0)
    assert GT_ENTRY.decode(1 << 60, SE) == (Kind.ZERO, 0)
    assert GT_ENTRY.decode(2 << 60, SE) == (Kind.ZERO, 0)
    number = 0x12345
    entry = 3 << 60 | (number & 0xFFF) << 48 | number >> 12
    assert GT_ENTRY.decode(entry, SE) == (Kind.DATA, 4432 * 512 + number * 4096)
    for damaged in (1, 4 << 60, 2**64 - 1, 3 << 60 | (1 << 48) - 1):
        assert GT_ENTRY.decode(damaged, SE) is None


@pytest.mark.parametrize("free_sector", [6, 2**32 - 1])
def test_the_next_free_sector_may_be_beyond_a_file_that_had_not_grown_yet(
    free_sector: int,
) -> None:
    found = cowd.CowdHeader(4096, gd_entries=1, free_sector=free_sector)
    cowd.check(found, "x", 6 * 512)
