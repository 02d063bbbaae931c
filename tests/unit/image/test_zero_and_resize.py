"""Ranges that are zeroed or trimmed, and images that grow and shrink."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fdstash
from fdstash import Image
from tests.support.disks import FlatDisk
from tests.support.images import CACHES, SIZE
from tests.support.refusals import failed_with

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


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


def test_resizes_and_flushes_do_not_wait_for_each_other(raw: Path) -> None:
    ended = threading.Event()

    def flush() -> None:
        while not ended.is_set():
            image.pwrite(b"written", 0)
            image.flush()

    with fdstash.open(raw, "r+", format="raw") as image, ThreadPoolExecutor(3) as pool:
        flushing = [pool.submit(flush) for _ in range(3)]
        for number in range(1000):
            image.resize(SIZE + number % 2 * 4096)
        ended.set()
        for each in flushing:
            each.result(30)
        assert image.pread(7, 0) == b"written"


def test_what_cannot_be_resized_says_so_and_stays(flat: FlatDisk, raw: Path) -> None:
    with fdstash.open(flat.path, "r+") as image:
        assert failed_with(lambda: image.resize(512)) == errno.ENOTSUP
        assert image.size == flat.size
        image.pwrite(b"x", 0)
    with fdstash.open(raw, "r+", format="raw", offset=512) as image:
        assert failed_with(lambda: image.resize(512)) == errno.ENOTSUP
        assert image.size == SIZE - 512
