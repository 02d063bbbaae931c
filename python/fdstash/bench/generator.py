"""Requests without pause, or at a rate: the core's load generator, a thread for each job."""

from __future__ import annotations

import threading
from array import array
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

from fdstash._ffi import ffi, lib
from fdstash.bench.latency import Latency
from fdstash.buffers import AlignedBuffer
from fdstash.image import Image

__all__ = ["Interval", "Job", "Plan", "Totals"]

_SLICE_NS = 50_000_000
_PATTERNS = {
    "random": lib.FDSTASH_LOAD_RANDOM,
    "sequential": lib.FDSTASH_LOAD_SEQUENTIAL,
    "strided": lib.FDSTASH_LOAD_STRIDED,
}


@dataclass(frozen=True)
class Plan:
    """What one job does; sizes in bytes, times in seconds."""

    offset: int  #: of the guest, where its blocks begin
    blocks: int
    block_bytes: int
    depth: int
    engine: str = "auto"
    pattern: str = "random"  #: or ``sequential``, ``strided``
    stride: int = 1  #: blocks
    read_percent: int = 100
    requests: int = 0  #: no more than those; 0: without limit
    runtime: float = 0  #: no request begins later; 0: without limit
    rate: float = 0  #: requests a second; 0: as fast as can be
    seed: int = 1
    verify: bool = False


class Totals(NamedTuple):
    """What has completed, well or not; bytes are those that were moved."""

    reads: int
    writes: int
    read_bytes: int
    written_bytes: int
    failed: int
    wrong: int
    failed_offset: int
    wrong_offset: int
    error: int  #: of the first that failed, ``-errno``
    started_ns: int  #: CLOCK_MONOTONIC
    ended_ns: int
    in_flight: int

    @property
    def requests(self) -> int:
        """Of both kinds."""
        return self.reads + self.writes

    @property
    def nanoseconds(self) -> int:
        """From the first to the last."""
        return max(0, self.ended_ns - self.started_ns)


class Interval(NamedTuple):
    """Requests that completed in a stretch of time."""

    start_ns: int  #: CLOCK_MONOTONIC
    requests: int
    mean_ns: float
    max_ns: int


class Job(threading.Thread):
    """One thread with a queue of its own. Start it once; `join` raises what ended it.

    `stop`, `mark` and all that looks are for any thread, until `close`.
    """

    def __init__(self, image: Image, plan: Plan, *, generations: array[int] | None = None) -> None:
        """`generations`: of a verified load before this one, of the same blocks."""
        super().__init__(name="fdstash-load", daemon=True)
        self.plan = plan
        self.failure: BaseException | None = None
        self.generations = generations
        if plan.verify and generations is None:
            self.generations = array("I", bytes(4 * plan.blocks))
        self._stack = ExitStack()
        try:
            self._handle = self._made(image)
        except BaseException:
            self._stack.close()
            raise

    def _made(self, image: Image) -> Any:
        plan = self.plan
        size = plan.depth * plan.block_bytes
        self._buffer = AlignedBuffer(size)
        self._memory = ffi.from_buffer("char[]", self._buffer, require_writable=True)
        self._queue = self._stack.enter_context(
            image.queue(plan.depth, engine=plan.engine, bound=True)
        )
        if plan.read_percent < 100:
            self._queue.before_write(plan.block_bytes, plan.offset)
        core = ffi.new("fdstash_load_plan *")
        core.memory = self._memory
        if self.generations is not None:
            self._generations = ffi.from_buffer("uint32_t[]", self.generations)
            core.generations = self._generations
        core.offset, core.blocks, core.block = plan.offset, plan.blocks, plan.block_bytes
        core.stride, core.requests, core.seed = plan.stride, plan.requests, plan.seed
        core.runtime_ns = int(plan.runtime * 1e9)
        core.interval_ns = max(1, round(1e9 / plan.rate)) if plan.rate else 0
        core.pattern, core.read_percent = _PATTERNS[plan.pattern], plan.read_percent
        core.depth = plan.depth
        out = ffi.new("fdstash_load **")
        self._queue.drive(lambda queue: int(lib.fdstash_load_new(queue, core, out)))
        self._stack.callback(lib.fdstash_load_free, out[0])
        self._stack.callback(self._queue.close)
        return out[0]

    # -- running

    def run(self) -> None:
        """On its own thread."""
        try:
            self._queue.pin(self._buffer)
            try:
                run = partial(lib.fdstash_load_run, self._handle, _SLICE_NS)
                while self._queue.drive(lambda _: int(run())):
                    pass
            finally:  # by the thread that its ring is bound to
                self._queue.drive(lambda queue: int(lib.fdstash_queue_drain(queue)))
        except BaseException as error:  # noqa: BLE001 - told by join
            self.failure = error

    def join(self, timeout: float | None = None) -> None:
        """As `threading.Thread.join`; raises what ended the thread."""
        super().join(timeout)
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """No request begins any more."""
        lib.fdstash_load_stop(self._handle)

    def close(self) -> None:
        """Stop, wait, and free. Twice is nothing."""
        if self._handle is None:
            return
        self.stop()
        if self.ident is not None:
            super().join()
        self._handle = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- looking

    def mark(self, *, placebo: bool) -> int:
        """Remember which requests are in flight; returns how many."""
        count: int = lib.fdstash_load_mark(self._handle, placebo)
        return count

    @property
    def totals(self) -> Totals:
        """Until now."""
        found = ffi.new("fdstash_load_totals *")
        lib.fdstash_load_report(self._handle, found)
        return Totals(
            found.requests[0],
            found.requests[1],
            found.bytes[0],
            found.bytes[1],
            found.failed,
            found.wrong,
            found.failed_offset,
            found.wrong_offset,
            found.error,
            found.started_ns,
            found.ended_ns,
            found.in_flight,
        )

    def latency(self, times: str) -> Latency:
        """`times`: ``READ``, ``WRITE``, ``READ_DUE``, ``WRITE_DUE``, ``MARKED``, ``PLACEBO``."""
        number = getattr(lib, f"FDSTASH_LOAD_{times}")
        counters = ffi.new("uint64_t[]", lib.FDSTASH_LOAD_COUNTERS)
        largest, total = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        lib.fdstash_load_histogram(self._handle, number, counters, largest, total)
        return Latency(ffi.unpack(counters, len(counters)), largest[0], total[0])

    def intervals(self) -> list[Interval]:
        """Latency over time."""
        found = ffi.new("fdstash_load_interval[]", lib.FDSTASH_LOAD_INTERVALS)
        width = ffi.new("int64_t *")
        count = lib.fdstash_load_intervals(self._handle, found, width)
        start = self.totals.started_ns
        return [
            Interval(start + number * width[0], each.count, each.sum_ns / each.count, each.max_ns)
            for number, each in enumerate(found[0:count])
            if each.count
        ]
