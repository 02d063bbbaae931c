"""Streams: what the writer writes the reader reads, and no stream harms the reader."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdstash.errors import ClosedError, FormatError, OptionError, UnsupportedFormatError
from fdstash.formats.vmdk import markers, sparse_header
from fdstash.formats.vmdk.compressed_grain import deflate, inflate, max_compressed_bytes
from fdstash.formats.vmdk.markers import GrainMarker, Marker, MarkerType
from fdstash.formats.vmdk.sparse_header import DEFLATE, GD_AT_END, Flag, SparseHeader
from fdstash.formats.vmdk.stream_reader import (
    Footer,
    Grain,
    GrainDirectory,
    GrainTable,
    StreamReader,
)
from fdstash.formats.vmdk.stream_writer import StreamWriter

GRAIN = 8
GRAIN_BYTES = GRAIN * 512
COVERAGE = 512 * GRAIN_BYTES


class Pipe:
    """Gives bytes at ascending offsets only, and takes a few at a time."""

    def __init__(self, data: bytes = b"", most: int = 1 << 30) -> None:
        self.data = bytearray(data)
        self.most = most
        self._at = 0

    def read(self, n: int, offset: int) -> bytes:
        assert offset >= self._at, "back in the stream"
        self._at = offset
        return bytes(self.data[offset : offset + n])

    def write(self, data: memoryview, /) -> int:
        taken = data[: self.most]
        self.data += taken
        return len(taken)


def written(grains: dict[int, bytes], capacity: int = 3 * COVERAGE, **options: object) -> bytes:
    pipe = Pipe(most=1000)
    with StreamWriter(pipe, capacity, GRAIN, **options) as writer:  # type: ignore[arg-type]
        for number in sorted(grains):
            writer.write_grain(number, grains[number])
    return bytes(pipe.data)


def everything(data: bytes) -> list[Grain | GrainTable | GrainDirectory | Footer]:
    return list(StreamReader(Pipe(data).read, "disk.vmdk"))


def grains_of(data: bytes) -> dict[int, bytes]:
    return {found.number: found.data for found in everything(data) if isinstance(found, Grain)}


def noise(number: int, length: int = GRAIN_BYTES) -> bytes:
    return random.Random(number).randbytes(length)


STREAM = written({0: noise(0), 5: b"a" * GRAIN_BYTES, 1500: noise(1500)})
HEADER = sparse_header.parse(STREAM, "")
START = HEADER.overhead * 512


def test_a_stream_is_laid_out_as_the_specification_has_it() -> None:
    found = everything(STREAM)
    kinds = [type(each).__name__ for each in found]
    assert kinds == [
        *("Grain", "Grain", "GrainTable", "Grain", "GrainTable"),
        *("GrainDirectory", "Footer"),
    ]
    first, second, table, third, other, directory, footer = found
    assert isinstance(table, GrainTable)
    assert isinstance(other, GrainTable)
    assert isinstance(directory, GrainDirectory)
    assert isinstance(footer, Footer)
    assert (table.entries[0], table.entries[5]) == (first.offset // 512, second.offset // 512)
    assert other.entries[1500 - 1024] == third.offset // 512
    assert list(directory.entries) == [table.offset // 512, 0, other.offset // 512]
    assert footer.header.gd_offset == directory.offset // 512
    assert footer.offset == len(STREAM) - 1024
    assert STREAM[-512:] == bytes(512)
    assert struct.unpack_from("<QII", STREAM, directory.offset - 512) == (1, 0, 2)
    assert struct.unpack_from("<QII", STREAM, footer.offset - 512) == (1, 0, 3)
    assert struct.unpack_from("<QII", STREAM, table.offset - 512) == (4, 0, 1)
    assert (HEADER.gd_offset, HEADER.overhead, HEADER.version) == (GD_AT_END, 24, 3)


def test_the_footer_is_found_from_the_end() -> None:
    footer = markers.read_footer(Pipe(STREAM).read, HEADER, "disk.vmdk", len(STREAM))
    found = [each for each in everything(STREAM) if isinstance(each, Footer)]
    assert [footer] == [each.header for each in found]


@settings(max_examples=60)
@given(
    st.dictionaries(st.integers(0, 1599), st.sampled_from("zsn"), max_size=12),
    st.integers(-1, 9),
    st.booleans(),
)
def test_what_is_written_is_read(kinds: dict[int, str], level: int, zeroed: bool) -> None:
    make: dict[str, Callable[[int], bytes]] = {
        "z": lambda n: bytes(GRAIN_BYTES),
        "s": lambda n: bytes([n & 0xFF | 1]) * GRAIN_BYTES,
        "n": noise,
    }
    grains = {number: make[kind](number) for number, kind in kinds.items()}
    data = written(grains, 1600 * GRAIN_BYTES, level=level, zeroed_grain=zeroed)
    assert grains_of(data) == {n: kept for n, kept in grains.items() if any(kept)}
    tables = [each for each in everything(data) if isinstance(each, GrainTable)]
    zeros = sum(kind == "z" for kind in kinds.values())
    assert sum(table.entries.count(1) for table in tables) == zeros * zeroed


def test_the_last_grain_may_be_cut() -> None:
    capacity = 10 * GRAIN_BYTES + 512
    for last in (noise(1, 512), noise(1, 512) + bytes(GRAIN_BYTES - 512)):
        assert grains_of(written({10: last}, capacity)) == {10: noise(1, 512)}


def test_an_empty_stream_has_a_directory_and_a_footer() -> None:
    assert [type(each) for each in everything(written({}, 512))] == [GrainDirectory, Footer]


def test_the_descriptor_is_embedded_with_room_to_grow() -> None:
    for text in (b"", b"# text\n", b"x" * 20000):
        data = written({}, 512, descriptor=text)
        reader = StreamReader(Pipe(data).read, "disk.vmdk")
        assert reader.descriptor.rstrip(b"\0") == text
        assert len(reader.descriptor) == max(20, len(text) // 512 + 1) * 512


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"capacity": 0}, "capacity"),
        ({"capacity": 513}, "capacity"),
        ({"capacity": 2**63}, "capacity"),
        ({"grain_sectors": 0}, "grain_sectors"),
        ({"grain_sectors": 100}, "grain_sectors"),
        ({"grain_sectors": 1 << 14}, "grain_sectors"),
        ({"level": 10}, "level"),
        ({"descriptor": bytes(1 << 20)}, "descriptor"),
    ],
)
def test_a_writer_takes_what_a_reader_reads(arguments: dict[str, object], option: str) -> None:
    with pytest.raises(OptionError) as caught:
        StreamWriter(Pipe(), **{"capacity": 1 << 20, **arguments})  # type: ignore[arg-type]
    assert caught.value.option == option


def test_a_writer_goes_forward_only() -> None:
    writer = StreamWriter(Pipe(), 10 * GRAIN_BYTES, GRAIN)
    writer.write_grain(3, noise(3))
    for number, data in ((3, noise(3)), (2, noise(2)), (10, noise(1)), (-1, noise(1)), (4, b"")):
        with pytest.raises(OptionError):
            writer.write_grain(number, data)
    writer.close()
    writer.close()
    with pytest.raises(ClosedError):
        writer.write_grain(4, noise(4))


def test_a_stream_is_not_completed_after_an_error() -> None:
    class Full(Pipe):
        def write(self, data: memoryview, /) -> int:
            if len(self.data) > START:
                raise OSError(28, "full")
            return super().write(data)

    output = Full(most=4096)
    writer = StreamWriter(output, 100 * GRAIN_BYTES, GRAIN)

    def work() -> None:
        with writer:
            for number in range(100):
                writer.write_grain(number, noise(number))

    with pytest.raises(OSError, match="full"):
        work()
    with pytest.raises(ClosedError):
        writer.close()

    class Never(io.RawIOBase):
        def write(self, _data: object, /) -> None:
            return None

    with pytest.raises(BlockingIOError):
        StreamWriter(Never(), 512)


# How a grain's data can be wrong.
GOOD = deflate(b"q" * GRAIN_BYTES)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (deflate(b"q" * (GRAIN_BYTES + 1)), "unpacks to more"),
        (deflate(bytes(1 << 22)), "unpacks to more"),
        (deflate(b"q" * (GRAIN_BYTES - 1)), f"unpacks to {GRAIN_BYTES - 1} bytes"),
        (deflate(b""), "unpacks to 0 bytes"),
        (GOOD[:-1], "cut off"),
        (GOOD[:5], "cut off"),
        (GOOD + b"x", "1 bytes follow"),
        (b"x" + GOOD, "damaged"),
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "damaged"),
        (zlib.compressobj(wbits=-15).flush(), "damaged"),
    ],
)
def test_a_grain_that_is_not_one_is_refused(data: bytes, words: str) -> None:
    at = START
    stream = STREAM[:at] + markers.encode_grain(HEADER, 0, data)
    with pytest.raises(FormatError, match=words) as caught:
        everything(stream)
    assert caught.value.field == "grain data"
    assert caught.value.offset == at + 12


def test_bytes_after_a_grain_are_allowed_where_its_length_is_not_known() -> None:
    found = inflate(GOOD + bytes(9), GRAIN_BYTES, GRAIN_BYTES, file="", offset=0, trailing=True)
    assert found == b"q" * GRAIN_BYTES


def test_noise_of_a_grain_is_within_the_limit_of_its_data() -> None:
    for sectors in (8, 128, 1 << 13):
        data = deflate(random.Random(1).randbytes(sectors * 512), 0)
        assert len(data) <= max_compressed_bytes(sectors * 512)


def marker(value: int, size: int, number: int) -> bytes:
    return struct.pack("<QII496x", value, size, number)


@pytest.mark.parametrize(
    ("sector", "field"),
    [
        (marker(0, 0, 4), "marker type"),
        (marker(0, 0, 2**32 - 1), "marker type"),
        (marker(1, 0, 0), "marker value"),
        (marker(5, 0, 1), "marker value"),
        (marker(2**64 - 1, 0, 1), "marker value"),
        (marker(0, 0, 1), "marker value"),
        (marker(2, 0, 2), "marker value"),
        (marker(2**63, 0, 3), "marker value"),
        (marker(1, 1, 0), "marker value"),
        (marker(1536 * GRAIN, 1, 0), "marker value"),
        (marker(2**64 - 8, 1, 0), "marker value"),
        (marker(0, 2**32 - 1, 0), "marker size"),
        (marker(0, max_compressed_bytes(GRAIN_BYTES) + 1, 0), "marker size"),
        (marker(0, max_compressed_bytes(GRAIN_BYTES), 0), "grain data"),
        (marker(4, 0, 1), "GRAIN_TABLE"),
        (marker(0, 0, 0), "marker"),  # the end without a footer
        (b"", "marker"),
        (bytes(511), "marker"),
    ],
)
def test_a_marker_that_is_none_is_refused(sector: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        everything(STREAM[:START] + sector)
    assert caught.value.field == field
    assert caught.value.offset is not None
    assert caught.value.offset >= START


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([marker(4, 0, 1) + struct.pack("<512I", *[28] * 512)], "has not come yet"),
        ([marker(4, 0, 1) + bytes(2048)] * 4, "more tables than the 3"),
        ([marker(1, 0, 2) + struct.pack("<I508x", 7)], "sector 7, in the grain directory"),
        ([marker(1, 0, 2) + bytes(512)] * 2, "two markers"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(parts: list[bytes], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        everything(STREAM[:START] + b"".join(parts))


def test_grains_come_in_order() -> None:
    grain = markers.encode_grain(HEADER, 3, GOOD)
    with pytest.raises(FormatError, match="not in order"):
        everything(STREAM[:START] + grain + grain)


def test_a_footer_of_another_disk_is_refused() -> None:
    at = len(STREAM) - 1024
    for field, value in ((12, 99), (20, 16), (56, 2**64 - 1)):
        data = bytearray(STREAM)
        struct.pack_into("<Q", data, at + field, value)
        with pytest.raises(FormatError) as caught:
            everything(bytes(data))
        assert caught.value.offset in (at, at + field)
        with pytest.raises(FormatError):
            markers.read_footer(Pipe(data).read, HEADER, "disk.vmdk", len(data))


@pytest.mark.parametrize("length", [0, 511, 512, 1024, 1536, 1537, len(STREAM) - 1])
def test_a_file_without_its_footer_is_refused(length: int) -> None:
    with pytest.raises(FormatError) as caught:
        markers.read_footer(Pipe(STREAM[:length]).read, HEADER, "disk.vmdk", length)
    assert "footer" in (caught.value.field or "")


@pytest.mark.parametrize("lost", [1, 512, 513, 1024, 2000])
def test_a_stream_that_was_cut_off_is_refused(lost: int) -> None:
    with pytest.raises(FormatError):
        everything(STREAM[:-lost])


def test_an_extent_without_markers_is_no_stream() -> None:
    header = SparseHeader(1 << 17, gd_offset=1, overhead=128)
    with pytest.raises(UnsupportedFormatError, match="no stream"):
        StreamReader(Pipe(header.encode()).read, "disk.vmdk")


def front(*parts: bytes) -> bytes:
    """A file as QEMU writes it: the tables first, no markers but those of grains."""
    header = SparseHeader(
        capacity=100 * GRAIN,
        version=3,
        flags=Flag.NEWLINES | Flag.COMPRESSED | Flag.MARKERS,
        grain=GRAIN,
        gd_offset=1,
        overhead=8,
        compression=DEFLATE,
    )
    return header.encode().ljust(4096, b"\0") + b"".join(parts)


def test_a_file_with_its_tables_first_ends_with_the_file() -> None:
    first, second = (markers.encode_grain(HEADER, n, GOOD) for n in (9, 2))
    data = front(first, bytes(512 * 5), second.rstrip(b"\0"))
    assert grains_of(data) == {9: b"q" * GRAIN_BYTES, 2: b"q" * GRAIN_BYTES}
    assert everything(front()) == []


def test_a_file_with_its_tables_first_is_bounded_too() -> None:
    with pytest.raises(FormatError, match="sectors of zeros"):
        everything(front(bytes(1 << 20)))
    grain = markers.encode_grain(HEADER, 1, GOOD)
    with pytest.raises(FormatError, match="more grains than the 100"):
        everything(front(grain * 101))


def test_markers_read_as_they_were_written() -> None:
    for made in (
        Marker(MarkerType.GRAIN_TABLE, 4),
        Marker(MarkerType.GRAIN_DIRECTORY, 1),
        Marker(MarkerType.FOOTER, 1),
        Marker(MarkerType.END_OF_STREAM),
    ):
        assert markers.parse(made.encode(), HEADER, "", 0) == made
    grain = markers.encode_grain(HEADER, 7, b"abc")
    assert grain == struct.pack("<QI", 7 * GRAIN, 3) + b"abc" + bytes(497)
    assert markers.parse(grain, HEADER, "", 0) == GrainMarker(7, 3)
