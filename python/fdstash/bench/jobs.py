"""The jobs of a load: several of the generator's at once, and what they have found."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

from fdstash.bench.generator import Interval, Job, Plan, Totals
from fdstash.bench.latency import Latency
from fdstash.errors import ImageIOError
from fdstash.image import Image

__all__ = ["Found", "Generations", "Jobs", "fill", "look_again"]

_TIMES = ("READ", "WRITE", "READ_DUE", "WRITE_DUE", "FLUSH", "MARKED", "PLACEBO")
_FILL_BYTES = 1 << 20
_LOOK = 0.1  # seconds between two reports of progress
_SPIN_NS = 200_000  # what is left of a placebo is not slept: a sleep is not that exact

#: Of a verified load: for each job the generation of each of its blocks.
Generations = Sequence["array[int] | None"]


@dataclass
class Found:
    """What jobs have found, all together; nanoseconds."""

    totals: list[Totals] = field(default_factory=list)
    latency: dict[str, Latency] = field(default_factory=dict)  #: by the names of `Job.latency`
    intervals: list[Interval] = field(default_factory=list)

    @property
    def requests(self) -> tuple[int, int]:
        """Reads and writes that completed."""
        return sum(t.reads for t in self.totals), sum(t.writes for t in self.totals)

    @property
    def flushes(self) -> int:
        """That completed."""
        return sum(t.flushes for t in self.totals)

    @property
    def bytes(self) -> tuple[int, int]:
        """Read and written."""
        return sum(t.read_bytes for t in self.totals), sum(t.written_bytes for t in self.totals)

    @property
    def seconds(self) -> float:
        """From the first request to the last, of the job that took longest."""
        return max((totals.nanoseconds for totals in self.totals), default=0) / 1e9

    @property
    def failed(self) -> int:
        """Requests."""
        return sum(t.failed for t in self.totals)

    @property
    def wrong(self) -> int:
        """Blocks that did not hold what they had to."""
        return sum(t.wrong for t in self.totals)

    def complaints(self) -> Iterator[str]:
        """What is bad, in words."""
        for totals in self.totals:
            if totals.failed:
                yield (
                    f"{totals.failed} requests failed, the first at {totals.failed_offset}:"
                    f" {os.strerror(-totals.error)}"
                )
            if totals.wrong:
                yield (
                    f"{totals.wrong} blocks did not hold what was written, the first at"
                    f" {totals.wrong_offset}"
                )


class Jobs:
    """One job for each plan, on one image. Owner: one thread.

    Started by `start`, stopped and freed by leaving the context.
    """

    def __init__(self, image: Image, plans: Sequence[Plan], generations: Generations) -> None:
        self.image = image
        self._stack = ExitStack()
        self._stretch_ns = 0
        with self._stack:
            self._jobs = [
                self._stack.enter_context(Job(image, plan, generations=known))
                for plan, known in zip(plans, generations, strict=True)
            ]
            self._stack = self._stack.pop_all()

    def start(self) -> None:
        """Once."""
        for job in self._jobs:
            job.start()

    def stop(self) -> None:
        """No request begins any more; waits for those in flight."""
        for job in self._jobs:
            job.stop()
        self.join()

    def join(self) -> None:
        """Wait until all have ended; raises what ended one of them."""
        for job in self._jobs:
            job.join()

    def wait(self, seconds: float) -> None:
        """For a while, or until the first has ended."""
        self._jobs[0].join(seconds)

    @property
    def running(self) -> bool:
        """Whether one of them still is."""
        return any(job.is_alive() for job in self._jobs)

    @property
    def generations(self) -> Generations:
        """What verified blocks hold, once all have ended."""
        return [job.generations for job in self._jobs]

    def attach(self, image: Image) -> None:
        """As `Job.attach`."""
        for job in self._jobs:
            job.attach(image)
        self.image = image

    def hold_writes(self) -> None:
        """As `Job.hold_writes`."""
        for job in self._jobs:
            job.hold_writes()

    def resume_writes(self) -> None:
        """As `Job.resume_writes`."""
        for job in self._jobs:
            job.resume_writes()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Something is done: what is in flight at any instant of it is marked."""
        start = time.monotonic_ns()
        try:
            with self._watching(placebo=False):
                yield
        finally:
            self._stretch_ns = time.monotonic_ns() - start

    def placebo(self) -> None:
        """The same for as long as the last stretch was, with nothing done."""
        with self._watching(placebo=True):
            _idle(self._stretch_ns)

    @contextmanager
    def _watching(self, *, placebo: bool) -> Iterator[None]:
        for job in self._jobs:
            job.watch(placebo=placebo, on=True)
        try:
            yield
        finally:
            for job in self._jobs:
                job.watch(placebo=placebo, on=False)

    def done(self) -> int:
        """Thousandths, of the job that is least far."""
        return int(1000 * min(_part_done(job) for job in self._jobs))

    def found(self) -> Found:
        """Until now."""
        jobs = self._jobs
        return Found(
            [job.totals for job in jobs],
            {times: Latency.sum_of(job.latency(times) for job in jobs) for times in _TIMES},
            sorted(each for job in jobs for each in job.intervals()),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _idle(nanoseconds: int) -> None:
    until = time.monotonic_ns() + nanoseconds
    if nanoseconds > _SPIN_NS:
        time.sleep((nanoseconds - _SPIN_NS) / 1e9)
    while time.monotonic_ns() < until:
        pass


def _part_done(job: Job) -> float:
    totals, plan = job.totals, job.plan
    ran = time.monotonic_ns() - totals.started_ns if totals.started_ns else 0
    by_time = ran / (plan.runtime * 1e9) if plan.runtime else 0.0
    by_count = totals.requests / plan.requests if plan.requests else 0.0
    return max(by_time, by_count)


def fill(
    image: Image, plans: Sequence[Plan], report: Callable[[int, int], None]
) -> list[array[int] | None]:
    """Write every block once, so that nothing that is read is a hole; the generations it has."""
    found: list[array[int] | None] = []
    total = sum(plan.blocks for plan in plans)
    done = 0
    for plan in plans:
        write = _once(plan, read_percent=0)
        if not plan.verify and plan.cells is None and plan.block_bytes < _FILL_BYTES:
            write = _in_large_blocks(write)
        with Job(image, write) as job:
            job.start()
            while job.is_alive():
                job.join(_LOOK)
                report(min(total, done + job.totals.written_bytes // plan.block_bytes), total)
            job.join()
            if job.totals.failed:
                code = -job.totals.error
                raise ImageIOError(code, f"filling it: {os.strerror(code)}")
            found.append(job.generations)
        done += plan.blocks
    image.flush()
    return found


def look_again(image: Image, plans: Sequence[Plan], generations: Generations) -> Found:
    """Read every block once more, and verify it."""
    with Jobs(image, [_once(plan, read_percent=100) for plan in plans], generations) as jobs:
        jobs.start()
        jobs.join()
        return jobs.found()


def _once(plan: Plan, *, read_percent: int) -> Plan:
    return replace(
        plan,
        pattern="sequential",
        read_percent=read_percent,
        requests=plan.blocks,
        runtime=0,
        rate=0,
        flush_every=0,
    )


def _in_large_blocks(plan: Plan) -> Plan:
    """The same bytes in few requests; the last of them ends where the image allows."""
    size = plan.blocks * plan.block_bytes
    each = next((b for b in (_FILL_BYTES, 1 << 16, 1 << 12) if size % b == 0), plan.block_bytes)
    each = max(each, plan.block_bytes) if size % max(each, plan.block_bytes) == 0 else each
    return replace(
        plan, block_bytes=each, blocks=size // each, requests=size // each, depth=min(plan.depth, 8)
    )
