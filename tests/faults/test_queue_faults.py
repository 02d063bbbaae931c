"""A queue whose host fails: each error reaches its request alone, and nothing is left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import AlignedBuffer, Error, Image, Queue
from fdstash.queue import ENGINES
from tests.support import tier
from tests.support.disks import make_raw, noise
from tests.support.faultshim import SHORT, FaultShim
from tests.support.fuse import HeldFs

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.slow]

PART = 4096
PARTS = 16
BAD = 5  # the part that fails


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def held_fs(tmp_path: Path) -> Iterator[HeldFs]:
    backing = tmp_path / "backing"
    backing.mkdir()
    filesystem = HeldFs(backing, tmp_path / "held")
    (backing / "disk").write_bytes(noise(PARTS * PART))
    try:
        yield filesystem
    finally:
        filesystem.close()


def opened(held_fs: HeldFs, cache: str) -> Image:
    return fdstash.open(held_fs.folder / "disk", "r+", format="raw", cache=cache)


def moved(queue: Queue, memory: AlignedBuffer, kind: str) -> dict[Any, int]:
    move = Queue.read if kind == "read" else Queue.write
    with memoryview(memory) as view:
        for part in range(PARTS):
            at = part * PART
            move(queue, view[at : at + PART], at, part)
    found: dict[Any, int] = {}
    while queue.in_flight:
        found |= dict(queue.wait())
    return found


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("kind", ["read", "write"])
def test_an_error_of_the_host_is_that_of_one_request(
    held_fs: HeldFs, engine: str, kind: str, cache: str, code: int
) -> None:
    with opened(held_fs, cache) as image, AlignedBuffer(PARTS * PART) as memory:
        with image.queue(PARTS, engine=engine) as queue:
            memory[:] = noise(PARTS * PART, 1)
            held_fs.break_bytes(BAD * PART + 100, 10, code)
            found = moved(queue, memory, kind)
            told = found.pop(BAD)
            # The page cache has one error for all reads.
            assert told == -code or (kind == "read" and cache == "writeback" and told == -errno.EIO)
            assert set(found.values()) == {PART}
            held_fs.break_bytes(0, 0, 0)
            assert moved(queue, memory, kind) == dict.fromkeys(range(PARTS), PART)
        wanted = noise(PARTS * PART, 1 if kind == "write" else 0)
        assert memory[:] == wanted
        assert image.pread(PARTS * PART, 0) == wanted
    assert (held_fs.backing / "disk").read_bytes() == wanted


def test_a_file_that_was_cut_is_an_error_of_what_is_missing(tmp_path: Path, engine: str) -> None:
    path = make_raw(tmp_path, PARTS * PART)
    with (
        fdstash.open(path, "r+", format="raw") as image,
        image.queue(PARTS, engine=engine) as queue,
        AlignedBuffer(PARTS * PART) as memory,
    ):
        os.truncate(path, BAD * PART)
        found = moved(queue, memory, "read")
        assert found == {part: PART if part < BAD else -errno.EIO for part in range(PARTS)}


# ------------------------------------------------------------------ under the shim

MOST = 100
#: Calls of the core while a queue is made and used, and how they fail.
CALLS = {
    "malloc": errno.ENOMEM,
    "pthread_create": errno.EAGAIN,
    "F_DUPFD": errno.EMFILE,
    "close": errno.EIO,
    "io_uring": errno.EPERM,
    "mmap": errno.ENOMEM,
}


def use(image: Image, engine: str, data: bytes) -> dict[Any, int]:
    """A queue from its beginning to its end."""
    found: dict[Any, int] = {}
    with image.queue(4, engine=engine) as queue:
        buffers = [bytearray(1000) for _ in range(2)]
        for number, buffer in enumerate(buffers):
            queue.read(buffer, number * 100_000, number)
        queue.write(data, 30_000, "write")
        queue.flush("flush")
        while queue.in_flight:
            found |= dict(queue.wait())
        queue.zero(5000, 200_000, "zero")
        queue.fileno()
        found |= dict(queue.wait())
    return found


@pytest.mark.preload
@pytest.mark.parametrize("times", [1, *([1000] * tier.FULL)])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["sparse", *(["raw"] * tier.FULL)])
def test_each_call_of_a_queue_fails(  # noqa: PLR0917 - all by name
    shim: FaultShim, tmp_path: Path, engine: str, kind: str, call: str, times: int
) -> None:
    """A clear error, or all is done; the image serves, and has what was said to be written."""
    path = tmp_path / "disk"
    if kind == "sparse":
        fdstash.create(path, "vmdk", 1 << 18, subformat="monolithicSparse")
    else:
        path = make_raw(tmp_path, 1 << 18)
    shim.within("_native")
    with fdstash.open(path, "r+", format="vmdk" if kind == "sparse" else "raw") as image:
        before = len(os.listdir("/proc/self/fd"))
        for position in range(MOST):
            data = noise(700, position)
            failed: Exception | None = None
            found: dict[Any, int] = {}
            with shim.fault(call, position, CALLS[call], times=times) as result:
                try:
                    found = use(image, engine, data)
                except (Error, OSError, MemoryError) as error:
                    failed = error
            if failed is None:
                wanted = {0: 1000, 1: 1000, "write": 700, "flush": 0, "zero": 0}
                for tag, told in found.items():
                    assert told in (wanted[tag], -CALLS[call]), (position, tag, told)
                if found["write"] == 700:
                    assert image.pread(700, 30_000) == data
            assert len(os.listdir("/proc/self/fd")) == before, (position, failed)
            image.pwrite(noise(100, position), 70_000)
            assert image.pread(100, 70_000) == noise(100, position)
            if not result.fired:
                assert failed is None
                return
    raise AssertionError("there is no end")


@pytest.mark.preload
@pytest.mark.parametrize("engine", ["psync", "auto"])
@pytest.mark.parametrize("kind", ["read", "write"])
def test_what_is_moved_in_part_is_moved_as_a_whole(
    shim: FaultShim, tmp_path: Path, engine: str, kind: str
) -> None:
    path = make_raw(tmp_path, PARTS * PART)
    path.write_bytes(noise(PARTS * PART))
    with (
        fdstash.open(path, "r+", format="raw") as image,
        image.queue(PARTS, engine=engine) as queue,
        AlignedBuffer(PARTS * PART) as memory,
    ):
        memory[:] = noise(PARTS * PART, 1)
        call = "pread" if kind == "read" else "pwrite"
        with shim.fault(call, 0, SHORT, times=3):
            assert moved(queue, memory, kind) == dict.fromkeys(range(PARTS), PART)
        wanted = noise(PARTS * PART, 1 if kind == "write" else 0)
        assert memory[:] == wanted
    assert path.read_bytes() == wanted
