"""Reads and writes: any offset, length and buffer, and which of them are refused."""

from __future__ import annotations

import array
import ctypes
import errno
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import fdstash
from fdstash import AlignedBuffer, Image
from tests.support.disks import FlatDisk, noise
from tests.support.images import CACHES, SIZE
from tests.support.refusals import failed_with

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


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
