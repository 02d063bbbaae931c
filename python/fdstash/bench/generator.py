"""Requests without pause, or at a rate: the core's load generator, a thread for each job."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from fdstash._ffi import ffi, lib
from fdstash.bench.cells import Cell
from fdstash.bench.latency import Latency
from fdstash.buffers import AlignedBuffer
from fdstash.image import Image
from fdstash.queue import Queue

__all__ = ["Interval", "Job", "Plan", "Totals"]

_SLICE_NS = 50_000_000
_LOOK = 0.05  # seconds between two looks whether a job's thread is still there
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
    flush_every: int = 0  #: a flush after so many writes; 0: none
    pause: float = 0  #: nothing begins for so long after a failure
    seed: int = 1
    verify: bool = False
    cells: Sequence[Cell] | None = None  #: the blocks, `blocks` of them, none above `block_bytes`
    #: What the blocks hold, each at a multiple of `block_bytes`: what is written is what was read.
    baseline: bytearray | None = None


class Totals(NamedTuple):
    """What has completed, well or not; bytes are those that were moved."""

    reads: int
    writes: int
    flushes: int
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
        """Reads and writes."""
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

    `attach` and `hold_writes` belong to one thread; `stop`, `mark` and all that looks are for any,
    until `close`.
    """

    def __init__(self, image: Image, plan: Plan, *, generations: array[int] | None = None) -> None:
        """`generations`: of a verified load before this one, of the same blocks."""
        super().__init__(name="fdstash-load", daemon=True)
        self.plan = plan
        self.failure: BaseException | None = None
        self.generations = generations
        if plan.verify and generations is None:
            self.generations = array("I", bytes(4 * plan.blocks))
        self._attached = threading.Event()
        self._stack = ExitStack()
        try:
            self._queue = self._next = self._queue_of(image)
            self._stack.callback(self._close_queue)
            self._handle = self._made()
        except BaseException:
            self._stack.close()
            raise

    def _queue_of(self, image: Image) -> Queue:
        queue = image.queue(self.plan.depth, engine=self.plan.engine, bound=True)
        try:
            self._before_writes(queue)
        except BaseException:
            queue.close()
            raise
        return queue

    def _before_writes(self, queue: Queue) -> None:
        if self.plan.read_percent < 100:
            queue.before_write(self.plan.block_bytes, self.plan.offset)

    def _made(self) -> Any:
        plan = self.plan
        self._buffer = AlignedBuffer(plan.depth * plan.block_bytes)
        core = ffi.new("fdstash_load_plan *")
        #: What the core is told of and does not own.
        self._lent = [ffi.from_buffer("char[]", self._buffer, require_writable=True)]
        core.memory = self._lent[0]
        if self.generations is not None:
            core.generations = self._lend(ffi.from_buffer("uint32_t[]", self.generations))
        if plan.cells is not None:
            core.cells = self._lend(ffi.new("fdstash_load_cell[]", list(plan.cells)))
        if plan.baseline is not None:
            core.baseline = self._lend(ffi.from_buffer("char[]", plan.baseline))
        core.offset, core.blocks, core.block = plan.offset, plan.blocks, plan.block_bytes
        core.stride, core.requests, core.seed = plan.stride, plan.requests, plan.seed
        core.runtime_ns, core.pause_ns = int(plan.runtime * 1e9), int(plan.pause * 1e9)
        core.interval_ns = max(1, round(1e9 / plan.rate)) if plan.rate else 0
        core.pattern, core.read_percent = _PATTERNS[plan.pattern], plan.read_percent
        core.depth, core.flush_every = plan.depth, plan.flush_every
        out = ffi.new("fdstash_load **")
        self._queue.drive(lambda queue: int(lib.fdstash_load_new(queue, core, out)))
        self._stack.callback(lib.fdstash_load_free, out[0])
        self._stack.callback(self._close_queue)
        return out[0]

    def _lend(self, memory: Any) -> Any:
        self._lent.append(memory)
        return memory

    # -- running

    def run(self) -> None:
        """On its own thread."""
        try:
            self._queue.pin(self._buffer)
            try:
                state = lib.FDSTASH_LOAD_GOES_ON
                while state != lib.FDSTASH_LOAD_ENDED:
                    state = self._queue.drive(self._slice)
                    if state == lib.FDSTASH_LOAD_LEFT:
                        self._change_queues()
            finally:  # by the thread that its ring is bound to
                self._queue.drive(lambda queue: int(lib.fdstash_queue_drain(queue)))
        except BaseException as error:  # noqa: BLE001 - told by join
            self.failure = error

    def _slice(self, _queue: Any) -> int:
        return int(lib.fdstash_load_run(self._handle, _SLICE_NS))

    def _close_queue(self) -> None:
        self._queue.close()

    def _change_queues(self) -> None:
        former, queue = self._queue, self._next
        self._queue = queue
        queue.drive(lambda core: lib.fdstash_load_attach(self._handle, core) or 0)
        queue.pin(self._buffer)
        former.close()
        self._attached.set()

    def attach(self, image: Image) -> None:
        """Go on with another image, of the same blocks.

        For one that has come in the place of an image that was closed: until then each request
        fails. Returns when it is so, or the job has ended. Raises what making a queue raises.
        """
        queue = self._queue_of(image)
        self._attached.clear()
        self._next = queue
        lib.fdstash_load_leave(self._handle)
        while self.is_alive() and not self._attached.wait(_LOOK):
            pass
        if not self._attached.is_set():
            queue.close()

    def hold_writes(self) -> None:
        """Let no write begin (reads do, in their place), and wait for those in flight."""
        while lib.fdstash_load_hold_writes(self._handle, 1, _SLICE_NS) and self.is_alive():
            pass

    def resume_writes(self) -> None:
        """Let writes begin again."""
        self._before_writes(self._queue)
        lib.fdstash_load_hold_writes(self._handle, 0, 0)

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

    def watch(self, *, placebo: bool, on: bool) -> int:
        """As `mark`, and also each request that begins, until `on` is false."""
        count: int = lib.fdstash_load_watch(self._handle, placebo, on)
        return count

    @property
    def totals(self) -> Totals:
        """Until now."""
        found = ffi.new("fdstash_load_totals *")
        lib.fdstash_load_report(self._handle, found)
        return Totals(
            found.requests[0],
            found.requests[1],
            found.requests[2],
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
        """`times`: a name of `enum fdstash_load_times`, such as ``READ_DUE`` or ``MARKED``."""
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
