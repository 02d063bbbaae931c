"""What a queue's requests do, and what their completions say, on every engine."""

from __future__ import annotations

import array
import errno
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import fdstash
from fdstash import AlignedBuffer, Image, ImageIOError, OptionError, Queue
from tests.support.disks import make_raw, noise

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def results(queue: Queue) -> dict[object, int]:
    """Of all that is in flight, by tag."""
    found: dict[object, int] = {}
    while queue.in_flight:
        for completion in queue.wait():
            assert completion.tag not in found
            found[completion.tag] = completion.result
    return found


def test_what_was_written_is_read(image: Image, queue: Queue) -> None:
    parts = {offset: noise(n, offset) for offset, n in [(0, 4096), (5000, 777), (9000, 40_000)]}
    for offset, data in parts.items():
        queue.write(data, offset, offset)
    assert results(queue) == {offset: len(data) for offset, data in parts.items()}
    buffers = {offset: bytearray(len(data)) for offset, data in parts.items()}
    for offset, buffer in buffers.items():
        queue.read(buffer, offset, offset)
    assert results(queue) == {offset: len(data) for offset, data in parts.items()}
    assert buffers == parts
    for offset, data in parts.items():
        assert image.pread(len(data), offset) == data


def test_a_request_that_crosses_extents_completes_once(image: Image, queue: Queue) -> None:
    data = noise(image.size)
    queue.write(data, 0, "whole")
    assert results(queue) == {"whole": len(data)}
    buffer = bytearray(image.size)
    queue.read(buffer, 0, "whole")
    assert results(queue) == {"whole": len(data)}
    assert buffer == data


def test_zero_trim_and_flush_complete_with_nothing(image: Image, queue: Queue) -> None:
    image.pwrite(noise(65536), 0)
    queue.zero(8192, 4096, "zero")
    queue.zero(1000, 20_000, "fua", unmap=True, fua=True)
    queue.trim(4096, 32768, "trim")
    queue.flush("flush")
    assert results(queue) == {"zero": 0, "fua": 0, "trim": 0, "flush": 0}
    assert image.pread(8192, 4096) == bytes(8192)
    assert image.pread(1000, 20_000) == bytes(1000)


def test_a_read_is_short_at_the_end_alone(image: Image, queue: Queue) -> None:
    queue.read(bytearray(1000), image.size - 10, "end")
    queue.read(bytearray(1000), image.size, "past")
    queue.read(bytearray(0), 0, "nothing")
    assert results(queue) == {"end": 10, "past": 0, "nothing": 0}


def test_a_write_past_the_end_writes_nothing(image: Image, queue: Queue) -> None:
    before = image.pread(10, image.size - 10)
    queue.write(b"x" * 11, image.size - 10, "past")
    queue.zero(11, image.size - 10, "zero")
    assert results(queue) == {"past": -errno.ENOSPC, "zero": -errno.ENOSPC}
    assert image.pread(10, image.size - 10) == before


def test_a_read_only_image_refuses_writes(image: Image, queue: Queue) -> None:
    image.reopen(mode="r")
    queue.write(b"x", 0, "write")
    queue.trim(4096, 0, "trim")
    queue.read(bytearray(1), 0, "read")
    assert results(queue) == {"write": -errno.EBADF, "trim": -errno.EBADF, "read": 1}


def test_a_full_queue_says_so(queue: Queue) -> None:
    for number in range(8):
        queue.read(bytearray(512), 0, number)
    with pytest.raises(BlockingIOError):
        queue.read(bytearray(512), 0)
    assert queue.in_flight == 8
    assert results(queue) == dict.fromkeys(range(8), 512)
    queue.read(bytearray(512), 0, "again")
    assert results(queue) == {"again": 512}


def test_nothing_starts_before_it_is_submitted(image: Image, queue: Queue) -> None:
    image.pwrite(b"before", 0)
    queue.write(b"after!", 0)
    assert image.pread(6, 0) == b"before"
    assert queue.submit() == 1
    assert len(queue.wait()) == 1
    assert image.pread(6, 0) == b"after!"


def test_wait_returns_when_nothing_is_in_flight_or_time_is_up(queue: Queue) -> None:
    assert queue.wait() == []
    assert queue.wait(5, timeout=10) == []
    queue.read(bytearray(512), 0, 1)
    assert len(queue.wait(100)) == 1
    assert queue.wait(0) == []


def test_a_buffer_is_pinned_until_its_completion_was_collected(queue: Queue) -> None:
    buffer = bytearray(512)
    queue.read(buffer, 0)
    with pytest.raises(BufferError):
        buffer.clear()
    queue.submit()
    with pytest.raises(BufferError):
        buffer.clear()
    queue.wait()
    buffer.clear()


def test_a_buffer_that_nobody_else_holds_stays(image: Image, queue: Queue) -> None:
    image.pwrite(noise(4096), 0)
    for _ in range(200):
        queue.read(bytearray(4096), 0)
        queue.write(noise(4096), 4096)
        assert [each.result for each in (*queue.wait(2),)] == [4096, 4096]


def test_bytes_are_never_read_into(queue: Queue) -> None:
    with pytest.raises((BufferError, TypeError)):
        queue.read(bytes(512), 0)
    assert queue.in_flight == 0


def test_no_such_range(queue: Queue) -> None:
    for offset in (-1, 1 << 63):
        with pytest.raises(ImageIOError):
            queue.read(bytearray(1), offset)
    assert queue.in_flight == 0


def test_the_eventfd_is_readable_until_all_is_collected(image: Image, queue: Queue) -> None:
    poll = select.poll()
    poll.register(queue.fileno(), select.POLLIN)
    queue.wait(0)
    assert not poll.poll(0)
    for turn in range(300):
        queue.read(bytearray(4096), turn % 8 * 4096)
        queue.write(noise(100, turn), 40_000)
        queue.submit()
        left = 2
        while left:
            assert poll.poll(10_000), "no wake-up"
            left -= len(queue.wait(0))
    assert image.pread(100, 40_000) == noise(100, 299)


def test_many_in_one_call(image: Image, queue: Queue) -> None:
    count, n = 300, 600
    offsets = array.array("q", [number * n % (image.size - n) for number in range(0, count * 7, 7)])
    places = array.array("q", sorted({offset // n * n for offset in offsets}))
    data = noise(len(places) * n)
    assert queue.write_many(places, n, data) == len(data)
    for number, offset in enumerate(places):
        assert image.pread(n, offset) == data[number * n :][:n]
    into = bytearray(count * n)
    assert queue.read_many(offsets, n, into) == len(into)
    for number, offset in enumerate(offsets):
        assert into[number * n :][:n] == image.pread(n, offset)


def test_many_raise_the_first_error_when_all_have_completed(image: Image, queue: Queue) -> None:
    good = array.array("q", [0, 4096, image.size, 8192])
    with pytest.raises(ImageIOError) as caught:
        queue.write_many(good, 4096, noise(4 * 4096))
    assert caught.value.errno == errno.ENOSPC
    assert image.pread(4096, 8192) == noise(4 * 4096)[3 * 4096 :]
    with pytest.raises(ImageIOError):
        queue.read_many(array.array("q", [-1]), 512, bytearray(512))
    assert queue.in_flight == 0


def test_many_beside_others(queue: Queue) -> None:
    buffer = bytearray(4096)
    queue.read(buffer, 0, "other")
    assert (
        queue.read_many(array.array("q", range(0, 51_200, 512)), 512, bytearray(51_200)) == 51_200
    )
    assert results(queue) == {"other": 4096}
    for _ in range(8):
        queue.read(bytearray(1), 0)
    with pytest.raises(BlockingIOError):
        queue.read_many(array.array("q", [0]), 512, bytearray(512))


def test_many_want_integers_and_room(queue: Queue) -> None:
    with pytest.raises(TypeError):
        queue.read_many(array.array("i", [0]), 512, bytearray(512))
    with pytest.raises(TypeError):
        queue.read_many(array.array("d", [0]), 512, bytearray(512))
    with pytest.raises(ImageIOError):
        queue.read_many(array.array("q", [0, 512]), 512, bytearray(1023))


def test_a_pinned_buffer_serves_as_any_other(image: Image, queue: Queue) -> None:
    with AlignedBuffer(1 << 16) as memory:
        pinned = queue.pin(memory)
        assert pinned == (queue.engine == "io_uring")
        assert not queue.pin(memory)
        memory[:] = noise(1 << 16)
        with memoryview(memory) as view:
            queue.write(view[4096:8192], 0, "within")
            assert results(queue) == {"within": 4096}
            image.reopen(cache="writethrough")
            queue.read(view[:4096], 0, "back")
            queue.read(bytearray(100), 0, "elsewhere")
            assert results(queue) == {"back": 4096, "elsewhere": 100}
            assert view[:4096] == view[4096:8192]
        queue.close()


def test_depth_and_engine_are_checked(image: Image) -> None:
    for depth in (0, 5000):
        with pytest.raises(OptionError):
            image.queue(depth)
    with pytest.raises(OptionError):
        image.queue(engine="uring")


def test_what_is_not_aligned_goes_through_o_direct(tmp_path: Path, engine: str) -> None:
    model = bytearray(noise(1 << 18, 3))
    path = make_raw(tmp_path, len(model))
    path.write_bytes(model)
    with (
        fdstash.open(path, "r+", format="raw", cache="none") as image,
        image.queue(16, engine=engine) as queue,
    ):
        for turn in range(8):
            buffers = {}
            for number in range(8):
                offset, n = number * 30_000 + turn * 37, 3000 + number * 511
                data = noise(n, turn * 8 + number)
                model[offset : offset + n] = data
                queue.write(data, offset, number)
            assert set(results(queue).values()) == {3000 + number * 511 for number in range(8)}
            for number in range(8):
                offset, n = number * 30_000 + turn * 37, 3000 + number * 511
                buffers[number] = (offset, bytearray(n))
                queue.read(buffers[number][1], offset, number)
            results(queue)
            for offset, buffer in buffers.values():
                assert buffer == model[offset : offset + len(buffer)]
    assert path.read_bytes() == model


def test_the_driver_serves_errors_too(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 1 << 20, subformat="monolithicSparse")
    with fdstash.open(path, "r+") as image:
        image.pwrite(noise(65536), 0)
    with path.open("r+b") as file:  # the entry of the second grain leads out of the file
        header = file.read(512)
        directory = int.from_bytes(header[56:64], "little") * 512
        redundant = int.from_bytes(header[48:56], "little") * 512
        for place in (directory, redundant):
            file.seek(place)
            table = int.from_bytes(file.read(4), "little") * 512
            file.seek(table + 4)
            file.write((0x7FFFFFFF).to_bytes(4, "little"))
    with fdstash.open(path, "r+") as image, image.queue(4, engine=engine) as queue:
        queue.read(bytearray(4096), 65536, "bad")
        queue.read(bytearray(4096), 0, "good")
        queue.read(bytearray(4096), 131_072, "hole")
        assert results(queue) == {"bad": -errno.EIO, "good": 4096, "hole": 4096}


def test_the_engine_is_the_one_that_was_asked_for(image: Image, engine: str) -> None:
    with image.queue(2, engine=engine) as queue:
        assert queue.engine == engine or (
            engine == "auto" and queue.engine in ("io_uring", "threads")
        )
        assert queue.depth == 2
        assert os.fstat(queue.fileno())


class Submitted(NamedTuple):
    """What the submitting thread itself did for some reads."""

    calls: int
    moved: int  # bytes


def submit_reads(path: str | os.PathLike[str], cache: str) -> Submitted:
    """32 reads of 4 KiB of a file of which the page cache holds nothing."""

    def done() -> Submitted:
        text = Path("/proc/thread-self/io").read_text()
        count = dict(line.split(": ") for line in text.splitlines())
        return Submitted(int(count["syscr"]), int(count["rchar"]))

    with (
        fdstash.open(path, "r+", format="raw", cache=cache) as image,
        image.queue(32, engine="auto") as queue,
        AlignedBuffer(4096) as memory,
    ):
        fd = image.files[0].fd
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        first, before = done(), done()
        for number in range(32):
            queue.read(memory, number * 4096, number)
        queue.submit()
        after = done()
        assert results(queue) == dict.fromkeys(range(32), 4096)
    # Looking is a read, too.
    looking = Submitted(before.calls - first.calls, before.moved - first.moved)
    return Submitted(
        after.calls - before.calls - looking.calls, after.moved - before.moved - looking.moved
    )


@pytest.mark.root
def test_memory_is_read_by_plain_calls_past_the_page_cache_too(tmpfs: Path) -> None:
    """tmpfs accepts O_DIRECT and ignores it; its io_uring gives each request to a thread."""
    path = make_raw(tmpfs, 1 << 20)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        assert error.errno == errno.EINVAL
        pytest.skip("this kernel refuses O_DIRECT on tmpfs")
    assert submit_reads(path, "none").calls == 32


@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_a_device_is_not_waited_for_in_submit(loop_device: Callable[..., str], cache: str) -> None:
    """Its node lies on a file system that is memory, and it does not."""
    assert submit_reads(loop_device(1 << 20), cache).moved < 4096
