"""The face of an open image: requests, attributes, extents, the file object, and its end."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import gc
import io
import itertools
import mmap
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fdstash
from fdstash import AlignedBuffer, ClosedError, Extent, FDStash, Image, ImageIOError, Limits
from fdstash.datapath import Requests
from tests.support.disks import ExtentSpec, FlatDisk, make_flat, make_raw, noise
from tests.support.seen import locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

SIZE = 1 << 17
CACHES = ["writeback", "none", "writethrough", "directsync", "unsafe"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path, SIZE)


@pytest.fixture(params=["raw", "vmdk"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    if request.param == "raw":
        opened = fdstash.open(make_raw(tmp_path, SIZE + 100), "r+", format="raw")
    else:
        opened = fdstash.open(make_flat(tmp_path).path, "r+")
    with opened:
        yield opened


@pytest.fixture
def flat(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path)


def failed_with(call: Callable[[], object]) -> int | None:
    with pytest.raises(ImageIOError) as caught:
        call()
    return caught.value.errno


# -------------------------------------------------------------------- requests


@pytest.mark.parametrize("cache", CACHES)
def test_what_was_written_is_read_at_any_offset_and_length(image: Image, cache: str) -> None:
    image.reopen(cache=cache)
    expected = bytearray(image.pread(image.size, 0))
    assert len(expected) == image.size
    edges = [0, 1, 511, 512, 513, 4095, 4096, 4097, 37 * 512 - 1, 37 * 512, 165 * 512 + 3]
    lengths = (1, 512, 4096, 5000, 40000)
    for number, (offset, length) in enumerate(itertools.product(edges, lengths)):
        data = noise(min(length, image.size - offset), number)
        assert image.pwrite(data, offset) == len(data)
        expected[offset : offset + len(data)] = data
        assert image.pread(len(data) + 7, max(0, offset - 3)) == bytes(
            expected[max(0, offset - 3) : max(0, offset - 3) + len(data) + 7]
        )
    assert image.pread(image.size, 0) == bytes(expected)


@pytest.mark.parametrize("cache", CACHES)
def test_many_buffers_are_filled_and_written_in_turn(image: Image, cache: str) -> None:
    image.reopen(cache=cache)
    expected = image.pread(60_000, 700)
    sizes = [1, 0, 511, 4096, 3, 12_000, 4096, 513]
    buffers = [bytearray(size) for size in sizes]
    assert image.preadv(buffers, 700) == sum(sizes)
    assert b"".join(buffers) == expected[: sum(sizes)]
    pieces = [noise(size, size) for size in sizes]
    assert image.pwritev(pieces, 5000) == sum(sizes)
    assert image.pread(sum(sizes), 5000) == b"".join(pieces)
    many = [bytearray(1) for _ in range(3000)]
    assert image.preadv(many, 5000) == 3000
    assert b"".join(many) == image.pread(3000, 5000)
    assert image.pwritev(many[::-1], 0) == 3000
    assert image.pread(3000, 0) == b"".join(many[::-1])


def test_any_contiguous_buffer_serves(image: Image) -> None:
    expected = image.pread(64, 100)
    view = memoryview(bytearray(100))[10:74]
    numbers = array.array("Q", [0] * 8)
    block = (ctypes.c_ubyte * 64)()
    aligned = AlignedBuffer(64)
    for buffer in (view, numbers, block, aligned):
        assert image.preadv([buffer], 100) == 64
        assert bytes(memoryview(buffer).cast("B")) == expected
        assert image.pwrite(buffer, 300) == 64
        assert image.pread(64, 300) == expected
        image.zero(64, 300)
    aligned.close()


def test_a_buffer_that_cannot_be_written_to_is_not_read_into(image: Image) -> None:
    constant = bytes(64)
    for buffers in ([constant], [bytearray(4), constant], [memoryview(constant)], ["text"]):
        with pytest.raises((BufferError, TypeError)):
            image.preadv(buffers, 0)
    assert constant == bytes(64)
    with pytest.raises((BufferError, TypeError)):
        image.pwrite("text", 0)
    with pytest.raises((BufferError, TypeError)):
        image.preadv([memoryview(bytearray(64))[::2]], 0)


def test_reads_are_short_only_at_the_end(image: Image) -> None:
    size = image.size
    assert len(image.pread(1 << 40, 0)) == size
    assert len(image.pread(100, size - 3)) == 3
    assert image.pread(100, size) == b""
    assert image.pread(100, size + 12345) == b""
    assert image.pread(0, 0) == b""
    buffers = [bytearray(b"x" * 2), bytearray(b"x" * 5)]
    assert image.preadv(buffers, size - 3) == 3
    assert buffers[0] + buffers[1][:1] == image.pread(3, size - 3)
    assert buffers[1][1:] == b"x" * 4
    assert image.preadv([bytearray(5)], size) == 0
    assert image.preadv([], 0) == 0


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_write_past_the_end_writes_nothing(image: Image, cache: str) -> None:
    image.reopen(cache=cache)
    before = image.pread(image.size, 0)
    size = image.size
    calls: list[Callable[[], object]] = [
        lambda: image.pwrite(b"12", size - 1),
        lambda: image.pwrite(bytes(8192), size - 4096),
        lambda: image.pwrite(b"1", size),
        lambda: image.pwrite(b"1", size + 4096),
        lambda: image.pwritev([b"1", b"2"], size - 1),
        lambda: image.zero(2, size - 1),
        lambda: image.trim(8192, size - 4096),
        lambda: image.pwrite(b"1", (1 << 63) - 2),
    ]
    for call in calls:
        assert failed_with(call) == errno.ENOSPC
    assert image.pread(size + 10, 0) == before
    assert [file.size for file in image.files] == [os.fstat(f.fd).st_size for f in image.files]


def test_a_range_that_cannot_be_is_refused(image: Image) -> None:
    calls: list[Callable[[], object]] = [
        lambda: image.pread(-1, 0),
        lambda: image.pread(1, -1),
        lambda: image.pread(1, (1 << 63) - 1),
        lambda: image.pread(1 << 64, 0),
        lambda: image.preadv([bytearray(1)], -1),
        lambda: image.pwrite(b"1", -1),
        lambda: image.pwritev([b"1"], -1),
        lambda: image.pwrite(b"1", 1 << 63),
        lambda: image.zero(-1, 0),
        lambda: image.zero(1, -1),
        lambda: image.trim(1 << 63, 1),
        lambda: image.extents(-1),
        lambda: image.extents(1, -1),
    ]
    for call in calls:
        assert failed_with(call) == errno.EINVAL


def test_a_read_only_image_refuses_every_change(flat: FlatDisk) -> None:
    before = [path.read_bytes() for path in flat.files]
    with fdstash.open(flat.path) as image:
        calls: list[Callable[[], object]] = [
            lambda: image.pwrite(b"1", 0),
            lambda: image.pwritev([b"1"], 0),
            lambda: image.zero(512, 0),
            lambda: image.trim(4096, 0),
            lambda: image.resize(512),
        ]
        for call in calls:
            assert failed_with(call) == errno.EBADF
        image.flush()
    assert [path.read_bytes() for path in flat.files] == before


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("cache", CACHES)
def test_zeroed_bytes_read_as_zeros_and_their_neighbours_as_before(
    image: Image, cache: str, unmap: bool
) -> None:
    image.reopen(cache=cache)
    expected = bytearray(image.pread(image.size, 0))
    ranges = [(0, 1), (700, 100), (4096, 4096), (5000, 30_000), (512 * 165 - 5, 11), (0, 9000)]
    for offset, length in ranges:
        image.zero(length, offset, unmap=unmap, fua=offset == 700)
        expected[offset : offset + length] = bytes(length)
        assert image.pread(image.size, 0) == bytes(expected)
    assert image.size == len(expected)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_trimmed_bytes_read_as_before_or_as_zeros_and_their_neighbours_as_before(
    image: Image, cache: str
) -> None:
    image.reopen(cache=cache)
    before = image.pread(image.size, 0)
    image.trim(50_000, 3000)
    after = image.pread(image.size, 0)
    assert after[:3000] == before[:3000]
    assert after[53_000:] == before[53_000:]
    assert all(b in (a, 0) for a, b in zip(before, after, strict=True))


def test_unmapped_and_trimmed_space_is_given_back(raw: Path) -> None:
    with fdstash.open(raw, "r+", format="raw") as image:
        image.flush()
        full = raw.stat().st_blocks
        image.zero(SIZE // 2, 0, unmap=True)
        assert raw.stat().st_blocks < full
        image.trim(SIZE // 2, SIZE // 2)
        assert raw.stat().st_blocks == 0


def test_resize_grows_with_zeros_and_shrinks(raw: Path) -> None:
    with fdstash.open(raw, "r+", format="raw") as image:
        image.resize(SIZE + 5000)
        assert image.size == SIZE + 5000 == raw.stat().st_size
        assert image.pread(6000, SIZE - 1) == raw.read_bytes()[SIZE - 1 :]
        assert image.pread(5000, SIZE) == bytes(5000)
        image.pwrite(b"end", image.size - 3)
        image.resize(1000)
        assert image.size == 1000 == raw.stat().st_size
        assert failed_with(lambda: image.pwrite(b"12", 999)) == errno.ENOSPC
        image.resize(0)
        assert image.pread(10, 0) == b""
        image.resize(SIZE)
        assert image.pread(SIZE, 0) == bytes(SIZE)
        with pytest.raises(fdstash.Error):
            image.resize(-1)
        assert image.size == SIZE


def test_what_cannot_be_resized_says_so_and_stays(flat: FlatDisk, raw: Path) -> None:
    with fdstash.open(flat.path, "r+") as image:
        assert failed_with(lambda: image.resize(512)) == errno.ENOTSUP
        assert image.size == flat.size
        image.pwrite(b"x", 0)
    with fdstash.open(raw, "r+", format="raw", offset=512) as image:
        assert failed_with(lambda: image.resize(512)) == errno.ENOTSUP
        assert image.size == SIZE - 512


def test_a_file_that_others_made_shorter_is_an_error_and_not_zeros(raw: Path) -> None:
    with fdstash.open(raw, format="raw") as image:
        os.truncate(raw, SIZE // 2)
        assert image.pread(SIZE // 2, 0) == raw.read_bytes()
        assert failed_with(lambda: image.pread(SIZE, 0)) == errno.EIO


def test_data_written_is_seen_by_other_readers_of_the_file(raw: Path) -> None:
    for number, cache in enumerate(CACHES):
        with fdstash.open(raw, "r+", format="raw", cache=cache) as image:
            image.pwrite(noise(5000, number), 777, fua=True)
            image.pwritev([noise(100, 77)], 9001, fua=True)
            image.flush()
            content = raw.read_bytes()
        assert content[777:5777] == noise(5000, number)
        assert content[9001:9101] == noise(100, 77)


@pytest.mark.threads
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_neighbouring_writes_of_many_threads_are_all_kept(raw: Path, cache: str) -> None:
    with fdstash.open(raw, "r+", format="raw", cache=cache) as image:

        def write(number: int) -> None:
            for turn in range(50):
                image.pwrite(bytes([number * 50 + turn]) * 100, number * 100)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert image.pread(500, 0) == b"".join(bytes([n * 50 + 49]) * 100 for n in range(5))


# ------------------------------------------------------------------ attributes


def test_attributes_tell_what_is_open(flat: FlatDisk) -> None:
    with fdstash.open(flat.path, "r+", cache="none") as image:
        assert (image.size, image.format, image.mode, image.cache) == (
            *(flat.size, "vmdk"),
            *("r+", "none"),
        )
        assert (image.closed, image.backing, image.name) == (False, None, str(flat.path))
        assert repr(image) == f"<Image {str(flat.path)!r} vmdk r+ cache=none>"
        assert image.format_info["create-type"] == "custom"
        assert isinstance(image.files, tuple)
        assert [file.path for file in image.files] == [str(path) for path in flat.files]
    assert repr(image) == f"<Image {str(flat.path)!r} closed>"


def test_limits_tell_what_costs_least(raw: Path) -> None:
    with fdstash.open(raw, "r+", format="raw") as image:
        assert image.limits[:2] == (1, 1)
        image.reopen(cache="none")
        offset, memory, preferred, maximum = image.limits
        assert isinstance(image.limits, Limits)
        for alignment in (offset, memory):
            assert 0 < alignment <= 4096
            assert alignment & (alignment - 1) == 0
        assert preferred % offset == 0
        assert preferred <= maximum
        # And so they are: an aligned request goes through a plain O_DIRECT descriptor.
        with AlignedBuffer(offset) as buffer:
            assert os.preadv(image.files[0].fd, [buffer], offset) == offset


def test_the_limits_of_an_image_of_many_files_suit_each_of_them(flat: FlatDisk) -> None:
    with fdstash.open(flat.path, cache="none") as image:
        each = []
        for path in flat.files:
            with fdstash.open(path, format="raw", cache="none") as one:
                each.append(one.limits)
        assert image.limits.offset_alignment == max(limits.offset_alignment for limits in each)
        assert image.limits.memory_alignment == max(limits.memory_alignment for limits in each)


def test_files_follow_what_others_do_to_the_descriptors(raw: Path) -> None:
    with fdstash.open(raw, "r+", format="raw") as image:
        slot = image.files[0].fd
        fcntl.fcntl(slot, fcntl.F_SETFL, os.O_DIRECT)
        assert image.files[0].direct
        fcntl.fcntl(slot, fcntl.F_SETFL, 0)
        assert not image.files[0].direct
        os.truncate(raw, 2 * SIZE)
        assert image.files[0].size == 2 * SIZE
        os.truncate(raw, SIZE)


# --------------------------------------------------------------------- extents


def spread(path: Path, runs: list[tuple[int, int]], size: int) -> None:
    """A sparse file with data in those runs."""
    with path.open("wb") as file:
        file.truncate(size)
        for start, length in runs:
            file.seek(start)
            file.write(noise(length, start))
        file.flush()
        os.fsync(file.fileno())


def test_extents_tell_data_and_holes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    spread(path, [(65536, 65536), (262144, 4096)], 1 << 20)
    name = str(path)
    with fdstash.open(path) as image:
        assert list(image.extents()) == [
            Extent(0, 65536, "zero", name, 0, 0),
            Extent(65536, 65536, "data", name, 65536, 0),
            Extent(131072, 131072, "zero", name, 131072, 0),
            Extent(262144, 4096, "data", name, 262144, 0),
            Extent(266240, (1 << 20) - 266240, "zero", name, 266240, 0),
        ]
        assert list(image.extents(10, 65530)) == [
            Extent(65530, 6, "zero", name, 65530, 0),
            Extent(65536, 4, "data", name, 65536, 0),
        ]
        assert list(image.extents(offset=1 << 20)) == []
        assert list(image.extents(0, 5)) == []
        assert sum(e.length for e in image.extents(1 << 60, 100)) == (1 << 20) - 100


KINDS = (
    ExtentSpec("RW", 8, name="a.bin"),
    ExtentSpec("RW", 16, "ZERO"),
    ExtentSpec("RDONLY", 24, name="b.bin", start=8),
    ExtentSpec("NOACCESS", 8, name="gone.bin"),
    ExtentSpec("RW", 8, name="a.bin", start=8),
)


def test_extents_name_every_kind_and_where_its_bytes_are(tmp_path: Path) -> None:
    disk = make_flat(tmp_path, KINDS)
    (tmp_path / "gone.bin").unlink()
    a, b = str(tmp_path / "a.bin"), str(tmp_path / "b.bin")
    with fdstash.open(disk.path) as image:
        assert list(image.extents()) == [
            Extent(0, 4096, "data", a, 0, 0),
            Extent(4096, 8192, "zero", None, None, 0),
            Extent(12288, 12288, "data", b, 4096, 0),
            Extent(24576, 4096, "denied", None, None, 0),
            Extent(28672, 4096, "data", a, 4096, 0),
        ]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_extents_cover_any_range_without_gap_or_overlap(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    disk = make_flat(tmp_path_factory.mktemp("extents"))
    offset = data.draw(st.integers(0, disk.size))
    n = data.draw(st.none() | st.integers(0, disk.size + 10))
    end = disk.size if n is None else min(disk.size, offset + n)
    with fdstash.open(disk.path) as image:
        at = offset
        for extent in image.extents(n, offset):
            assert extent.offset == at
            assert extent.length > 0
            at += extent.length
            assert extent.file is not None
            assert extent.file_offset is not None
            with open(extent.file, "rb") as file:
                file.seek(extent.file_offset)
                assert file.read(extent.length) == image.pread(extent.length, extent.offset)
        assert at == max(offset, end)


def test_extents_are_looked_up_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    size = 1 << 30
    spread(path, [(start, 4096) for start in range(0, 1 << 26, 1 << 17)], size)
    with fdstash.open(path, "r+", format="raw") as image:
        extents = image.extents()
        first = [next(extents) for _ in range(3)]
        assert [extent.kind for extent in first] == ["data", "zero", "data"]
        # What changes behind the iterator is still seen.
        image.pwrite(bytes([1]) * 4096, 1 << 18 | 1 << 16)
        image.flush()
        rest = list(extents)
        assert (1 << 18 | 1 << 16) in [extent.offset for extent in rest if extent.kind == "data"]
        assert sum(extent.length for extent in [*first, *rest]) == size


def test_an_extent_iterator_ends_with_its_image(flat: FlatDisk) -> None:
    image = fdstash.open(flat.path)
    extents = image.extents()
    next(extents)
    image.close()
    with pytest.raises(ClosedError):
        next(extents)


# ----------------------------------------------------------------- file object


def test_a_file_object_reads_writes_and_seeks(image: Image) -> None:
    expected = image.pread(image.size, 0)
    file = image.as_file()
    assert isinstance(file, io.RawIOBase)
    assert (file.readable(), file.writable(), file.seekable()) == (True, True, True)
    assert file.read(10) == expected[:10]
    assert file.tell() == 10
    assert file.seek(-5, os.SEEK_END) == image.size - 5
    assert file.read(100) == expected[-5:]
    assert file.read(100) == b""
    assert file.seek(5) == 5
    assert file.seek(5, os.SEEK_CUR) == 10
    buffer = bytearray(100)
    assert file.readinto(buffer) == 100
    assert bytes(buffer) == expected[10:110]
    assert file.write(b"hello") == 5
    assert image.pread(5, 110) == b"hello"
    file.seek(0)
    assert file.readall()[110:115] == b"hello"
    file.flush()
    for call in (lambda: file.seek(-1), lambda: file.seek(0, 9), lambda: file.seek(-1, 0)):
        with pytest.raises(ValueError, match=r"negative|whence"):
            call()
    with pytest.raises((OSError, io.UnsupportedOperation)):
        file.truncate(10)


def test_a_file_object_writes_short_at_the_end_and_fails_beyond_it(image: Image) -> None:
    file = image.as_file()
    file.seek(image.size - 3)
    assert file.write(b"abcdef") == 3
    assert image.pread(10, image.size - 3) == b"abc"
    assert failed_with(lambda: file.write(b"d")) == errno.ENOSPC
    assert file.seek(image.size + 100) == image.size + 100
    assert file.read(5) == b""


def test_file_objects_have_a_position_each_and_leave_the_image_open(image: Image) -> None:
    one, two = image.as_file(), image.as_file()
    one.seek(100)
    assert two.tell() == 0
    one.close()
    assert one.closed
    for call in (one.tell, one.readable, lambda: one.seek(0), lambda: one.read(1), one.writable):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert len(two.read(5)) == 5
    with image.as_file() as three:
        three.write(b"x")
    assert not image.closed


def test_a_file_object_follows_the_mode_of_the_image(image: Image) -> None:
    file = image.as_file()
    image.reopen(mode="r")
    assert not file.writable()
    assert failed_with(lambda: file.write(b"x")) == errno.EBADF
    image.reopen(mode="r+")
    assert file.writable()
    file.write(b"x")


def test_buffered_reader_and_buffered_random_work_on_a_file_object(image: Image) -> None:
    expected = bytearray(image.pread(image.size, 0))
    with io.BufferedReader(image.as_file(), 4096) as reader:
        assert reader.read(10_000) == bytes(expected[:10_000])
        reader.seek(37 * 512 - 10)
        assert reader.read(20) == bytes(expected[37 * 512 - 10 : 37 * 512 + 10])
        assert reader.peek(1)[:1] == bytes(expected[37 * 512 + 10 : 37 * 512 + 11])
        reader.seek(0, os.SEEK_END)
        assert reader.read() == b""
    with io.BufferedRandom(image.as_file(), 4096) as both:
        for number, offset in enumerate((0, 5, 4090, 20_000, image.size - 100)):
            data = noise(100, number)
            both.seek(offset)
            both.write(data)
            expected[offset : offset + 100] = data
        both.seek(0)
        assert both.read() == bytes(expected)
    assert image.pread(image.size, 0) == bytes(expected)


def test_a_file_object_after_the_image_was_closed_says_so(flat: FlatDisk) -> None:
    image = fdstash.open(flat.path, "r+")
    file = image.as_file()
    buffered = io.BufferedReader(image.as_file())
    image.close()
    for call in (lambda: file.read(1), lambda: file.write(b"x"), lambda: buffered.read(1)):
        with pytest.raises(ClosedError):
            call()
    file.close()
    buffered.close()


# ------------------------------------------------------------------ its end


def every_request(image: Image) -> dict[str, Callable[[], object]]:
    """Each call that needs an open image."""
    stash = FDStash()
    return {
        "size": lambda: image.size,
        "limits": lambda: image.limits,
        "files": lambda: image.files,
        "backing": lambda: image.backing,
        "format_info": lambda: image.format_info,
        "pread": lambda: image.pread(1, 0),
        "preadv": lambda: image.preadv([bytearray(1)], 0),
        "preadv of many": lambda: image.preadv([bytearray(1), bytearray(1)], 0),
        "pwrite": lambda: image.pwrite(b"1", 0),
        "pwritev": lambda: image.pwritev([b"1"], 0),
        "zero": lambda: image.zero(512, 0),
        "trim": lambda: image.trim(4096, 0),
        "flush": image.flush,
        "resize": lambda: image.resize(512),
        "extents": image.extents,
        "reopen": image.reopen,
        "reopen with a path": lambda: image.reopen(path="other"),
        "extract_fds": lambda: image.extract_fds(stash),
        "as_file": image.as_file,
        "context": image.__enter__,
    }


def test_after_close_every_call_is_a_closed_error(image: Image) -> None:
    calls = every_request(image)
    image.close()
    image.close()
    assert image.closed
    for name, call in calls.items():
        with pytest.raises(ClosedError):
            print(name, call())


def test_leaving_the_context_closes_image_and_locks(flat: FlatDisk) -> None:
    with pytest.raises(KeyError), fdstash.open(flat.path, "r+") as image:
        raise KeyError
    assert image.closed
    assert [locked_bytes(path) for path in flat.files] == [[]] * 5


def test_an_image_that_is_dropped_warns_and_is_closed(flat: FlatDisk) -> None:
    def drop() -> None:
        fdstash.open(flat.path, "r+").pwrite(b"written", 0)
        gc.collect()

    with pytest.warns(ResourceWarning, match=r"unclosed image.*disk\.vmdk"):
        drop()
    assert [locked_bytes(path) for path in flat.files] == [[]] * 5


def test_an_image_that_was_closed_or_never_opened_warns_of_nothing(flat: FlatDisk) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image: Image | None = fdstash.open(flat.path)
        assert image is not None
        image.close()
        image = None
        with pytest.raises(FileNotFoundError):
            fdstash.open(flat.path.with_suffix(".none"))
        gc.collect()


def test_an_open_image_at_the_end_of_the_program_only_warns(flat: FlatDisk) -> None:
    code = "import sys, fdstash; i = fdstash.open(sys.argv[1], 'r+'); i.pwrite(b'end', 0)"
    command = [sys.executable, "-W", "always", "-c", code, str(flat.path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert flat.guest_bytes()[:3] == b"end"


@pytest.mark.threads
def test_close_waits_for_requests_in_flight_and_refuses_new_ones(raw: Path) -> None:
    image = fdstash.open(raw, "r+", format="raw")
    core = image._state.core
    ticket = core.enter(int(Requests.READS))
    closing = threading.Thread(target=image.close)
    closing.start()
    closing.join(0.1)
    try:
        assert closing.is_alive()
        with pytest.raises(ClosedError):
            image.pread(1, 0)
    finally:
        core.leave(ticket, int(Requests.READS))
    closing.join(30)
    assert not closing.is_alive()


@pytest.mark.threads
def test_threads_that_close_and_read_meet_closed_error_or_data(raw: Path) -> None:
    expected = raw.read_bytes()
    wrong: list[object] = []

    def work(image: Image, start: threading.Barrier, last: bool) -> None:
        start.wait()
        try:
            for _ in range(20):
                if image.pread(4096, 8192) != expected[8192:12288]:
                    wrong.append("other bytes")
                image.pwrite(expected[:100], 0)
            if last:
                image.close()
        except ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            wrong.append(error)

    for _ in range(20):
        image = fdstash.open(raw, "r+", format="raw")
        start = threading.Barrier(4)
        threads = [threading.Thread(target=work, args=(image, start, n < 2)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert image.closed
    assert not wrong


# ------------------------------------------------------------- aligned buffers


@pytest.mark.parametrize("alignment", [1, 512, 4096])
def test_an_aligned_buffer_is_zeroed_writable_and_aligned(alignment: int) -> None:
    with AlignedBuffer(5000, alignment) as buffer:
        assert len(buffer) == 5000
        assert buffer.alignment == alignment
        assert bytes(buffer) == bytes(5000)
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        assert address % alignment == 0
        gc.collect()
        buffer[10:15] = b"hello"
        assert bytes(memoryview(buffer)[10:15]) == b"hello"


@pytest.mark.parametrize(
    ("size", "alignment"),
    [(0, 512), (-1, 512), (10, 0), (10, 3), (10, -512), (10, 2 * mmap.PAGESIZE)],
)
def test_an_aligned_buffer_that_cannot_be_is_refused(size: int, alignment: int) -> None:
    with pytest.raises(ValueError, match=r"size|alignment"):
        AlignedBuffer(size, alignment)


def test_an_aligned_buffer_needs_no_bounce(raw: Path) -> None:
    expected = raw.read_bytes()
    with (
        fdstash.open(raw, "r+", format="raw", cache="none") as image,
        AlignedBuffer(8192) as buffer,
    ):
        assert image.preadv([buffer], 4096) == 8192
        assert bytes(buffer) == expected[4096:12288]
        assert image.pwrite(buffer, 16384) == 8192
        with memoryview(buffer) as view, pytest.raises(BufferError):
            print(view, buffer.close())
    assert raw.read_bytes()[16384:24576] == expected[4096:12288]


def test_a_forked_child_writes_into_a_buffer_of_its_own() -> None:
    with AlignedBuffer(4096) as buffer:
        child = os.fork()
        if child == 0:
            buffer[0] = 1
            os._exit(0)
        os.waitpid(child, 0)
        assert buffer[0] == 0


# ---------------------------------------------------------------------- create


def test_create_makes_what_open_opens(tmp_path: Path) -> None:
    fdstash.create(tmp_path / "a.raw", "raw", 12345)
    with fdstash.open(tmp_path / "a.raw", "r+", format="raw") as image:
        assert image.size == 12345
        assert image.pread(image.size, 0) == bytes(12345)
    options: dict[str, Any] = {"subformat": "twoGbMaxExtentFlat", "extent_size": 1 << 20}
    fdstash.create(tmp_path / "a.vmdk", "vmdk", 5 << 20, **options)
    with fdstash.open(tmp_path / "a.vmdk", "r+") as image:
        assert (image.size, len(image.files)) == (5 << 20, 6)
        image.pwrite(b"across", (1 << 20) - 3)
        assert image.pread(6, (1 << 20) - 3) == b"across"
        with pytest.raises(fdstash.LockError):
            fdstash.create(tmp_path / "a.vmdk", "vmdk", 1 << 20)
    with pytest.raises(fdstash.OptionError):
        fdstash.create(tmp_path / "b.raw", "raw", 5, colour="red")
    assert not (tmp_path / "b.raw").exists()
