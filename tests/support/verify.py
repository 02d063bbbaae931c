"""A load of blocks that say where and when they were written, so that nothing gets lost unseen.

Every block carries its offset and a generation over all of its bytes. A write counts when it is
acknowledged, and from then on every read of the block must show exactly that generation.
"""

from __future__ import annotations

import contextlib
import random
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

__all__ = ["BlockImage", "Failure", "LoadReport", "VerifiedLoad", "block_bytes"]

_UNIT = struct.Struct("<QQ")
_SALT = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_INVERSE = pow(_SALT, -1, 1 << 64)
_KEPT_FAILURES = 100

T = TypeVar("T")


class BlockImage(Protocol):
    """What a load needs of an image: the public `Image` has it."""

    def pread(self, n: int, offset: int, /) -> bytes: ...
    def preadv(self, buffers: Any, offset: int, /) -> int: ...
    def pwrite(self, data: bytes, offset: int, /) -> int: ...
    def flush(self) -> None: ...
    @property
    def size(self) -> int: ...


def block_bytes(offset: int, generation: int, size: int) -> bytes:
    """The content of a block: 16-byte units, each naming the block and the generation."""
    unit = _UNIT.pack(offset ^ _SALT, (generation * _SALT) & _MASK)
    return (unit * (size // _UNIT.size + 1))[:size]


def _describe(data: bytes, offset: int, generation: int) -> str:
    """What is wrong with a block, for whoever has to find out why."""
    expected = block_bytes(offset, generation, len(data))
    at = next(i for i, (a, b) in enumerate(zip(data, expected, strict=True)) if a != b)
    unit = data[at // _UNIT.size * _UNIT.size :][: _UNIT.size]
    where = f"generation {generation} expected, differs from byte {at} on"
    if len(unit) < _UNIT.size:
        return f"{where}: {unit.hex()}"
    place, found = _UNIT.unpack(unit)
    if not any(unit):
        return f"{where}: zeros"
    if place != offset ^ _SALT:
        return f"{where}: {unit.hex()}, as of a block at {place ^ _SALT}"
    old = found * _INVERSE & _MASK
    return f"{where}: generation {old}" + (", a lost write" if old < generation else "")


@dataclass(frozen=True)
class Failure:
    """A request that failed, or a block that is not what it must be."""

    kind: str
    """`read`, `write` or `flush`: the request raised; `wrong`: other bytes; `short`."""
    offset: int
    detail: str
    error: BaseException | None = None


@dataclass
class LoadReport:
    """Counts over the whole life of a load."""

    requests: int = 0
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    failed_requests: int = 0
    wrong_blocks: int = 0
    longest_request_ns: int = 0
    failures: list[Failure] = field(default_factory=list)
    """The first hundred."""

    @property
    def clean(self) -> bool:
        return self.failed_requests == 0 and self.wrong_blocks == 0

    def assert_clean(self, at_least: int = 0) -> None:
        """Nothing failed, nothing was wrong, and there were that many requests."""
        assert self.clean, (
            f"{self.failed_requests} failed, {self.wrong_blocks} wrong: "
            + "\n".join(
                f"{failure.kind} at {failure.offset}: {failure.error or failure.detail}"
                for failure in self.failures[:10]
            )
        )
        assert self.requests >= at_least, f"only {self.requests} requests"


class _Worker(threading.Thread):
    """One thread: its own blocks, or all of them under their locks."""

    def __init__(self, load: VerifiedLoad, number: int) -> None:
        super().__init__(name=f"verified-load-{number}", daemon=True)
        self.load = load
        self.number = number
        self.random = random.Random(load.seed * 1000 + number)
        self.report = LoadReport()
        self.laps = 0

    def run(self) -> None:
        load = self.load
        while not load._stop.is_set():
            index = load._pick(self)
            with load._lock_of(index):
                if load.write and self.random.random() < load.write_share:
                    load._write_block(index, self.report)
                else:
                    load._read_block(index, self.report, into=self.random.random() < 0.5)
            self.laps += 1
            if load.flush_every and self.report.requests % load.flush_every == 0:
                load._flush(self.report)
            if load.pause:
                time.sleep(load.pause)


class VerifiedLoad:
    """Threads that read and write verified blocks of an image until they are stopped.

    `block_size` of at least 16 bytes need not divide anything: blocks smaller than a sector have
    neighbours in it that belong to other threads. With `shared` every thread takes any block under
    its lock; without, block i belongs to thread i modulo `threads`. `region` is (offset, length).
    `flush_every`: a flush after so many requests of a thread. `pause`: seconds after each request.
    `write` may be changed at any time; see `stop_writing`.
    """

    def __init__(
        self,
        image: BlockImage,
        block_size: int = 4096,
        threads: int = 4,
        *,
        write: bool = True,
        region: tuple[int, int] | None = None,
        shared: bool = False,
        write_share: float = 0.5,
        flush_every: int = 0,
        pause: float = 0.0,
        seed: int = 1,
    ) -> None:
        start, length = region if region is not None else (0, image.size)
        if block_size < _UNIT.size or length < block_size * threads:
            raise ValueError("a block has 16 bytes, and every thread needs one")
        self.image = image
        self.block_size = block_size
        self.threads = threads
        self.write = write
        self.shared = shared
        self.write_share = write_share
        self.flush_every = flush_every
        self.pause = pause
        self.seed = seed
        self.offsets = range(start, start + length // block_size * block_size, block_size)
        self._acknowledged: list[int | None] = [None] * len(self.offsets)
        self._attempted = [0] * len(self.offsets)
        self._locks = [threading.Lock() for _ in range(1024)]
        self._stop = threading.Event()
        self._workers: list[_Worker] = []
        self._checks = LoadReport()

    # ---------------------------------------------------------------- the blocks

    def fill(self) -> Self:
        """Write the first generation of every block; before that, only written ones are read."""
        for index in range(len(self.offsets)):
            self._write_block(index, self._checks)
        return self

    def adopt(self, other: VerifiedLoad) -> Self:
        """Expect what another, stopped load of the same blocks has written."""
        if other.offsets != self.offsets:
            raise ValueError("not the same blocks")
        self._acknowledged = list(other._acknowledged)
        self._attempted = list(other._attempted)
        return self

    def verify(self, image: BlockImage | None = None) -> LoadReport:
        """Read every block once, of another view of the same bytes if one is given.

        To be called while stopped. Blocks whose last write failed may hold anything.
        """
        report = LoadReport()
        for index in range(len(self.offsets)):
            self._read_block(index, report, image=image)
        return report

    def _pick(self, worker: _Worker) -> int:
        if self.shared:
            return worker.random.randrange(len(self.offsets))
        mine = (len(self.offsets) - 1 - worker.number) // self.threads + 1
        return worker.random.randrange(mine) * self.threads + worker.number

    def _lock_of(self, index: int) -> contextlib.AbstractContextManager[object]:
        return self._locks[index % len(self._locks)] if self.shared else contextlib.nullcontext()

    def _write_block(self, index: int, report: LoadReport) -> None:
        offset = self.offsets[index]
        generation = self._attempted[index] + 1
        self._attempted[index] = generation
        # Until it is acknowledged nobody knows what the block holds.
        self._acknowledged[index] = None
        data = block_bytes(offset, generation, self.block_size)
        report.writes += 1
        done = _timed(report, "write", offset, lambda: self.image.pwrite(data, offset))
        if done is None:
            return
        if done != self.block_size:
            _record(report, Failure("short", offset, f"{done} bytes written"))
            return
        self._acknowledged[index] = generation

    def _read_block(
        self,
        index: int,
        report: LoadReport,
        *,
        into: bool = False,
        image: BlockImage | None = None,
    ) -> None:
        offset, size = self.offsets[index], self.block_size
        source = self.image if image is None else image
        report.reads += 1
        if into:
            half = size // 2
            parts = [bytearray(half), bytearray(size - half)]
            done = _timed(report, "read", offset, lambda: source.preadv(parts, offset))
            data = None if done is None else b"".join(parts)[:done]
        else:
            data = _timed(report, "read", offset, lambda: bytes(source.pread(size, offset)))
        generation = self._acknowledged[index]
        if data is None:
            return
        if len(data) != size:
            _record(report, Failure("short", offset, f"{len(data)} bytes read"))
        elif generation is not None and data != block_bytes(offset, generation, size):
            _record(report, Failure("wrong", offset, _describe(data, offset, generation)))

    def _flush(self, report: LoadReport) -> None:
        report.flushes += 1
        _timed(report, "flush", 0, self.image.flush)

    # --------------------------------------------------------------- the threads

    def start(self) -> Self:
        self._stop.clear()
        first = len(self._workers)
        fresh = [_Worker(self, number) for number in range(self.threads)]
        self._workers += fresh
        for number, worker in enumerate(fresh):
            worker.random.seed(self.seed * 1000 + first + number)
            worker.start()
        return self

    def stop(self, timeout: float = 60) -> LoadReport:
        """End the threads; the report. TimeoutError if a request hangs."""
        self._stop.set()
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                raise TimeoutError(f"{worker.name} is still in a request after {timeout} s")
        return self.report

    @property
    def running(self) -> bool:
        return any(worker.is_alive() for worker in self._workers)

    @property
    def report(self) -> LoadReport:
        """The counts by now."""
        total = LoadReport()
        for part in (self._checks, *(worker.report for worker in self._workers)):
            for name in _SUMMED:
                setattr(total, name, getattr(total, name) + getattr(part, name))
            total.longest_request_ns = max(total.longest_request_ns, part.longest_request_ns)
            total.failures += part.failures
        del total.failures[_KEPT_FAILURES:]
        return total

    @property
    def requests(self) -> int:
        """Requests that were completed by now."""
        return self.report.requests

    def wait_requests(self, count: int, timeout: float = 30) -> None:
        """Wait until that many further requests have been completed."""
        goal = self.requests + count
        deadline = time.monotonic() + timeout
        while (done := self.requests) < goal:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{goal - done} of {count} requests are missing")
            time.sleep(0.0005)

    def stop_writing(self, timeout: float = 30) -> None:
        """Only read from now on; returns when no write is in flight."""
        self.write = False
        deadline = time.monotonic() + timeout
        for worker, lap in [(worker, worker.laps) for worker in self._workers]:
            while worker.laps == lap and worker.is_alive():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{worker.name} is still in a request")
                time.sleep(0.0005)

    def resume_writing(self) -> None:
        self.write = True

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


_SUMMED = ("requests", "reads", "writes", "flushes", "failed_requests", "wrong_blocks")


def _record(report: LoadReport, failure: Failure) -> None:
    if failure.kind == "wrong":
        report.wrong_blocks += 1
    else:
        report.failed_requests += 1
    if len(report.failures) < _KEPT_FAILURES:
        report.failures.append(failure)


def _timed(report: LoadReport, kind: str, offset: int, call: Callable[[], T]) -> T | None:
    """What the request returns; None where it failed, which is recorded."""
    started = time.perf_counter_ns()
    try:
        result = call()
    except Exception as error:  # noqa: BLE001 - whatever a request raises has failed it
        _record(report, Failure(kind, offset, repr(error), error))
        result = None
        time.sleep(0.001)  # failing without pause would only fill the report
    report.longest_request_ns = max(report.longest_request_ns, time.perf_counter_ns() - started)
    report.requests += 1
    return result
