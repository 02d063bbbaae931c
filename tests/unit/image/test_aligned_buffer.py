"""Memory that needs no bounce."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from pathlib import Path

import pytest

import fdstash
from fdstash import AlignedBuffer

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


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
