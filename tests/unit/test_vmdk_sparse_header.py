"""The KDMV header: what is read is what was written, and nonsense is named."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdstash.errors import FormatError, UnsupportedFormatError
from fdstash.formats.vmdk import sparse_header
from fdstash.formats.vmdk.sparse_header import DEFLATE, GD_AT_END, Flag, SparseHeader

FIELDS = {
    "version": (4, "<I"),
    "flags": (8, "<I"),
    "capacity": (12, "<Q"),
    "grainSize": (20, "<Q"),
    "descriptorOffset": (28, "<Q"),
    "descriptorSize": (36, "<Q"),
    "numGTEsPerGT": (44, "<I"),
    "rgdOffset": (48, "<Q"),
    "gdOffset": (56, "<Q"),
    "overHead": (64, "<Q"),
    "compressAlgorithm": (77, "<H"),
}
EXTREMES = sorted(
    {
        *(0, 1, 2, 3, 7, 511, 513, 2**16 - 1, 2**21, 2**22, 2**31, 2**32 - 1, 2**32),
        *(2**54, 2**55, 2**63 - 1, 2**63, 2**64 - 1),
    }
)
# 64 MiB, with everything where QEMU puts it.
GOOD = SparseHeader(
    capacity=1 << 17,
    flags=Flag.NEWLINES | Flag.REDUNDANT,
    descriptor_offset=1,
    descriptor_size=20,
    rgd_offset=21,
    gd_offset=30,
    overhead=128,
)
SIZE = 128 * 512


def put(data: bytes, field: str, value: int) -> bytes:
    offset, form = FIELDS[field]
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, value)
    return bytes(changed)


def read(data: bytes, size: int = SIZE, at: int = 0) -> SparseHeader:
    header = sparse_header.parse(data, "disk.vmdk", at)
    sparse_header.check(header, "disk.vmdk", size, at)
    return header


def test_the_numbers_of_a_header_are_those_of_its_fields() -> None:
    data = GOOD.encode()
    assert len(data) == 512
    assert data[:4] == b"KDMV"
    assert data[73:77] == b"\n \r\n"
    for field, value in (("capacity", 1 << 17), ("rgdOffset", 21), ("overHead", 128)):
        offset, form = FIELDS[field]
        assert struct.unpack_from(form, data, offset) == (value,)
    assert read(data) == GOOD


def test_what_follows_from_a_header() -> None:
    header = replace(GOOD, capacity=(1 << 17) + 1)
    assert header.grain_bytes == 65536
    assert header.grain_count == 1025
    assert header.gt_count == 3
    assert header.gt_bytes == 2048
    assert header.gt_coverage_bytes == 32 << 20
    assert (header.gd_bytes, header.gd_sectors) == (12, 1)
    assert header.grain_length(1024) == 512
    assert header.grain_length(1023) == 65536
    assert replace(header, gtes_per_gt=1).gt_bytes == 512


@given(
    st.builds(
        SparseHeader,
        capacity=st.integers(1, 1 << 30),
        version=st.integers(1, 3),
        flags=st.integers(0, 7),
        grain=st.integers(3, 21).map(lambda n: 1 << n),
        gtes_per_gt=st.sampled_from([128, 256, 512]),
        descriptor_offset=st.integers(0, 2**64 - 1),
        descriptor_size=st.integers(0, 2**64 - 1),
        rgd_offset=st.integers(0, 2**64 - 1),
        gd_offset=st.integers(0, 2**64 - 1),
        overhead=st.integers(0, 2**64 - 1),
        unclean=st.booleans(),
    )
)
def test_a_header_reads_as_it_was_written(header: SparseHeader) -> None:
    assert sparse_header.parse(header.encode(), "disk.vmdk") == header


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", EXTREMES)
def test_an_extreme_is_read_or_refused_by_name_and_place(field: str, value: int) -> None:
    if value >> (8 * struct.calcsize(FIELDS[field][1])):
        return
    try:
        found = read(put(GOOD.encode(), field, value))
    except FormatError as error:
        assert error.file == "disk.vmdk"
        assert error.field is not None
        assert error.offset is not None
        assert error.offset in range(512)
    else:
        assert all(region.end * 512 <= SIZE for region in sparse_header.regions(found))


@given(st.binary(min_size=80, max_size=80), st.integers(0, 2**63 - 1))
def test_no_header_is_read_with_anything_outside_the_file(noise: bytes, size: int) -> None:
    data = b"KDMV\1\0\0\0" + noise[8:].ljust(504, b"\0")
    try:
        found = read(data, size)
    except FormatError as error:
        assert error.field
        assert error.offset is not None
    else:
        assert found.gd_bytes <= sparse_header.MAX_GD_BYTES
        assert all(r.start * 512 + r.length_bytes <= size for r in sparse_header.regions(found))


@pytest.mark.parametrize(
    ("field", "value", "guilty"),
    [
        ("capacity", 2**64 - 1, "capacity"),
        ("capacity", 2**40, "capacity"),  # the directory is too large
        ("grainSize", 0, "grainSize"),
        ("grainSize", 4, "grainSize"),
        ("grainSize", 129, "grainSize"),
        ("grainSize", 2**22, "grainSize"),
        ("numGTEsPerGT", 0, "numGTEsPerGT"),
        ("numGTEsPerGT", 100, "numGTEsPerGT"),
        ("numGTEsPerGT", 1024, "numGTEsPerGT"),
        ("descriptorSize", 0, "descriptorSize"),
        ("descriptorSize", 2049, "descriptorSize"),
        ("descriptorOffset", 127, "descriptorOffset"),  # leaves the file
        ("descriptorSize", 21, "rgdOffset"),  # reaches the redundant directory
        ("rgdOffset", 30, "gdOffset"),
        ("gdOffset", 0, "gdOffset"),
        ("gdOffset", 2**63, "gdOffset"),
        ("gdOffset", 128, "gdOffset"),
        ("overHead", 129, "overHead"),
        ("overHead", 10, "overHead"),
        ("flags", 1 << 16, "compressAlgorithm"),
    ],
)
def test_what_is_wrong_is_named(field: str, value: int, guilty: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(put(GOOD.encode(), field, value), at=0)
    assert caught.value.field == guilty
    assert caught.value.offset == FIELDS[guilty][0]


@pytest.mark.parametrize(
    ("field", "value"), [("version", 0), ("version", 4), ("compressAlgorithm", 2)]
)
def test_what_comes_from_the_future_is_unsupported(field: str, value: int) -> None:
    with pytest.raises(UnsupportedFormatError) as caught:
        read(put(GOOD.encode(), field, value))
    assert caught.value.field == field


def test_markers_without_compression_are_unsupported() -> None:
    with pytest.raises(UnsupportedFormatError, match="not compressed"):
        read(replace(GOOD, flags=GOOD.flags | Flag.MARKERS).encode())


def test_a_transfer_as_text_is_told() -> None:
    data = GOOD.encode().replace(b"\n \r\n", b"\n \n\n")
    with pytest.raises(FormatError, match="as binary data") as caught:
        read(data)
    assert caught.value.offset == 73
    other = replace(GOOD, flags=Flag.REDUNDANT)
    assert read(other.encode()) == other


def test_the_place_of_a_footer_is_that_of_its_errors() -> None:
    with pytest.raises(FormatError) as caught:
        read(put(GOOD.encode(), "grainSize", 0), at=4096)
    assert caught.value.offset == 4096 + 20


@pytest.mark.parametrize("length", [0, 4, 511])
def test_a_header_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(FormatError, match=f"there are only {length}"):
        read(GOOD.encode()[:length])


def test_a_compressed_grain_is_limited_to_what_fits_in_memory() -> None:
    stream = replace(GOOD, flags=1 | Flag.COMPRESSED, compression=DEFLATE, grain=1 << 13)
    assert read(stream.encode(), 1 << 40).compressed
    with pytest.raises(FormatError, match="power of two from 8 to 8192"):
        read(replace(stream, grain=1 << 14).encode())


def test_a_directory_at_the_end_is_left_to_the_footer() -> None:
    header = replace(GOOD, gd_offset=GD_AT_END)
    assert read(header.encode()) == header
    assert {r.field for r in sparse_header.regions(header)} == {
        "magicNumber",
        "descriptorOffset",
        "rgdOffset",
    }


def test_a_file_may_hold_a_descriptor_alone() -> None:
    header = SparseHeader(capacity=0, grain=0, gtes_per_gt=0, descriptor_offset=1)
    header = replace(header, descriptor_size=20, overhead=21)
    found = read(header.encode())
    assert (found.grain_count, found.gt_count, found.gd_bytes) == (0, 0, 0)
    with pytest.raises(FormatError, match="sectors, not 0"):
        read(replace(header, descriptor_offset=0).encode())


def test_what_no_field_holds_is_not_written() -> None:
    with pytest.raises(FormatError, match="cannot be written"):
        SparseHeader(capacity=2**64).encode()
