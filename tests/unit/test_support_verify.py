"""The verified load passes over a good image and finds out a bad one, whatever is bad about it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence

import pytest

from tests.support.verify import VerifiedLoad, block_bytes

SIZE = 256 * 1024


class MemoryImage:
    """Bytes in memory; `lie` decides what becomes of the n-th write."""

    def __init__(self, size: int = SIZE) -> None:
        self.data = bytearray(size)
        self.lock = threading.Lock()
        self.written = 0
        self.flushed = 0

    @property
    def size(self) -> int:
        return len(self.data)

    def pread(self, n: int, offset: int, /) -> bytes:
        with self.lock:
            return bytes(self.data[offset : offset + n])

    def preadv(self, buffers: Sequence[bytearray], offset: int, /) -> int:
        done = 0
        for buffer in buffers:
            data = self.pread(len(buffer), offset + done)
            buffer[: len(data)] = data
            done += len(data)
        return done

    def pwrite(self, data: bytes, offset: int, /) -> int:
        with self.lock:
            self.written += 1
            self.store(data, offset)
        return len(data)

    def store(self, data: bytes, offset: int) -> None:
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.flushed += 1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("block_size", [16, 100, 512, 4096])
def test_a_good_image_passes(block_size: int, shared: bool) -> None:
    image = MemoryImage(64 * block_size)
    load = VerifiedLoad(image, block_size, 4, shared=shared, flush_every=10).fill()
    with load:
        load.wait_requests(500)
    report = load.report
    report.assert_clean(at_least=500)
    assert report.reads + report.writes + report.flushes == report.requests
    assert report.writes > 64
    assert report.reads > 0
    assert report.flushes == image.flushed > 0
    assert report.longest_request_ns > 0
    assert load.verify().clean
    assert load.verify(image).reads == 64


class LosesWrites(MemoryImage):
    """Acknowledges every hundredth write without doing it."""

    def store(self, data: bytes, offset: int) -> None:
        if self.written % 100 != 0:
            super().store(data, offset)


def test_a_lost_acknowledged_write_is_found() -> None:
    load = VerifiedLoad(LosesWrites(), 4096, 2).fill()
    with load:
        load.wait_requests(2000)
    report = load.report
    assert report.wrong_blocks + load.verify().wrong_blocks > 0
    assert report.failed_requests == 0
    details = [failure.detail for failure in report.failures + load.verify().failures]
    assert any("a lost write" in detail for detail in details), details
    with pytest.raises(AssertionError, match="wrong"):
        report.assert_clean()


def test_one_lost_write_is_found_at_the_end() -> None:
    image = MemoryImage()
    load = VerifiedLoad(image, 4096, 1).fill()
    before = bytes(image.data)
    load.start().wait_requests(300)
    load.stop()
    image.data[8192:12288] = before[8192:12288]
    assert load.verify().wrong_blocks == 1


class UndoesNeighbours(MemoryImage):
    """Writes whole sectors that it read a moment before: a read-modify-write without its lock."""

    def pwrite(self, data: bytes, offset: int, /) -> int:
        start = offset // 512 * 512
        end = -(-(offset + len(data)) // 512) * 512
        sector = bytearray(self.pread(end - start, start))
        sector[offset - start : offset - start + len(data)] = data
        time.sleep(0)
        return super().pwrite(bytes(sector), start) and len(data)


def test_writes_undone_by_a_neighbour_are_found() -> None:
    load = VerifiedLoad(UndoesNeighbours(4096), 128, 4).fill()
    with load:
        deadline = time.monotonic() + 20
        while load.report.clean and time.monotonic() < deadline:
            load.wait_requests(100)
    assert load.report.wrong_blocks > 0


def test_a_block_in_the_wrong_place_is_found() -> None:
    image = MemoryImage()
    load = VerifiedLoad(image, 4096, 1).fill()
    image.data[4096:8192] = block_bytes(12288, 1, 4096)
    image.data[16384:16400] = bytes(16)
    found = load.verify()
    assert [(failure.kind, failure.offset) for failure in found.failures] == [
        ("wrong", 4096),
        ("wrong", 16384),
    ]
    assert "as of a block at 12288" in found.failures[0].detail
    assert "zeros" in found.failures[1].detail


class Fails(MemoryImage):
    """Every request fails for a while."""

    broken = False

    def pread(self, n: int, offset: int, /) -> bytes:
        if self.broken:
            raise OSError(errno.EIO, "broken")
        return super().pread(n, offset)

    def pwrite(self, data: bytes, offset: int, /) -> int:
        if self.broken:
            # What a failed write leaves behind is anybody's guess.
            super().pwrite(data[: len(data) // 2], offset)
            raise OSError(errno.EIO, "broken")
        return super().pwrite(data, offset)


def test_failed_requests_are_counted_and_do_not_count_as_wrong() -> None:
    image = Fails()
    with VerifiedLoad(image, 4096, 2).fill() as load:
        load.wait_requests(50)
        image.broken = True
        load.wait_requests(50)
        image.broken = False
        load.wait_requests(50)
    report = load.report
    assert report.failed_requests >= 50
    assert report.wrong_blocks == 0
    assert isinstance(report.failures[0].error, OSError)
    assert load.verify().clean


def test_the_longest_request_and_one_that_hangs() -> None:
    image = MemoryImage()
    with VerifiedLoad(image, 4096, 1).fill() as load:
        load.wait_requests(10)
        with image.lock:
            time.sleep(0.05)
            with pytest.raises(TimeoutError):
                load.stop(timeout=0.05)
    assert load.report.longest_request_ns > 90_000_000


def test_a_load_can_stop_writing_and_another_can_take_over() -> None:
    image = MemoryImage()
    with VerifiedLoad(image, 4096, 4).fill() as load:
        load.wait_requests(100)
        load.stop_writing()
        writes = image.written
        load.wait_requests(100)
        assert image.written == writes
        load.resume_writing()
        load.wait_requests(100)
        assert image.written > writes
    again = VerifiedLoad(image, 4096, 2, write=False).adopt(load)
    with again:
        again.wait_requests(100)
    again.report.assert_clean(at_least=100)
    assert again.report.writes == 0


def test_a_region_is_kept_to() -> None:
    image = MemoryImage()
    with VerifiedLoad(image, 1000, 2, region=(5000, 10500)).fill() as load:
        load.wait_requests(100)
    assert not any(image.data[:5000])
    assert not any(image.data[15000:])
    assert all(any(image.data[at : at + 1000]) for at in range(5000, 15000, 1000))
