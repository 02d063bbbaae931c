"""Any offset, length and memory, whatever O_DIRECT asks for."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fdstash.hostfile import HostFile
from fdstash.opening import open_path
from tests.support.disks import noise
from tests.support.ground import PLACES, Ground, at, directness, image_at

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]

EDGES = [0, 1, 511, 512, 513, 1023, 3584, 4095, 4096, 4097, 8191, 8192, 12287, 12289]
LENGTHS = [1, 2, 511, 512, 513, 4095, 4096, 4097, 8192, 9000]
SIZES = [12288, 12289, 12800, 16383, 20000]


@at(PLACES)
@directness
def test_every_read_around_every_boundary(ground: Ground, *, direct: bool) -> None:
    for size in SIZES:
        data = noise(size, size)
        ground.fill(data)
        data = ground.content()
        file = ground.open(direct=direct)
        ends = [len(data) - 513, len(data) - 512, len(data) - 1, len(data), len(data) + 1]
        for offset, length in itertools.product([*EDGES, *ends], LENGTHS):
            assert file.pread(length, offset) == data[offset : offset + length], (offset, length)
        file.release()


@at(PLACES)
@directness
def test_every_write_around_every_boundary(ground: Ground, *, direct: bool) -> None:
    """Neighbours stay as they were, and so does the end unless a write goes beyond it."""
    for size in SIZES:
        ground.fill(noise(size, size))
        model = bytearray(ground.content())
        file = ground.open(direct=direct)
        ends = [size - 513, size - 1] if ground.place.is_device else [size - 513, size - 1, size]
        for number, (offset, length) in enumerate(itertools.product([*EDGES, *ends], LENGTHS)):
            data = noise(length, number)
            assert file.pwrite(data, offset) == length
            if offset + length > len(model):
                model.extend(bytes(offset + length - len(model)))
            model[offset : offset + length] = data
            assert file.size == len(model)
        assert file.pread(len(model) + 10, 0) == model
        assert ground.content() == model
        file.release()


def test_a_file_that_ends_inside_a_sector_still_ends_there(ext4_mount: Callable[..., Path]) -> None:
    for sector in (512, 4096):
        path = ext4_mount(sector_size=sector) / "file"
        for size in (1, 511, 513, 4095, 4097, 10_000):
            path.write_bytes(noise(size))
            fd = open_path(str(path), os.O_RDWR | os.O_DIRECT)
            file = HostFile(fd, "file")
            for offset in {0, size // 2, size - 1}:
                file.pwrite(b"z", offset)
                assert path.stat().st_size == size
            file.pwrite(b"end", size)
            assert path.stat().st_size == size + 3
            assert path.read_bytes()[size:] == b"end"
            file.release()


@pytest.mark.parametrize("shift", [0, 1, 8, 256, 512, 2048])
@at([PLACES[0], PLACES[1], PLACES[6]])
def test_memory_at_any_address_serves(ground: Ground, shift: int) -> None:
    ground.fill(noise(65536))
    data = ground.content()[:65536]
    memory = memoryview(mmap.mmap(-1, 65536))
    with image_at(ground, "none") as image:
        for offset, length in ((0, 8192), (4096, 4096), (1, 4095), (4095, 8194), (512, 1024)):
            view = memory[shift : shift + length]
            assert image.preadv([view], offset) == length
            assert view == data[offset : offset + length]
            assert image.pwritev([view], offset) == length
            parts = [memory[shift : shift + 5], memory[8192 + shift : 8192 + shift + length - 5]]
            if length > 5:
                assert image.preadv(parts, offset) == length
                assert b"".join(parts) == data[offset : offset + length]
                assert image.pwritev(parts, offset) == length
    assert ground.content()[:65536] == data
