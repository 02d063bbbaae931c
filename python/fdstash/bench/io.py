"""Measure how fast an image is read and written, in the words of fio.

`run` is the whole of `fdstash bench io`: jobs of the load generator over an image, perhaps with
reopens meanwhile.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import fdstash
from fdstash.bench.generator import Interval, Job, Plan, Totals
from fdstash.bench.latency import Latency
from fdstash.bench.subject import default_folder
from fdstash.cache import CACHE_MODES
from fdstash.errors import Error, OptionError
from fdstash.queue import ENGINES

__all__ = ["PATTERNS", "IoResult", "IoSettings", "run"]

#: What `rw` may be: the pattern, and the percentage of reads (None: `read_percent`).
PATTERNS: dict[str, tuple[str, int | None]] = {
    "read": ("sequential", 100),
    "write": ("sequential", 0),
    "rw": ("sequential", None),
    "randread": ("random", 100),
    "randwrite": ("random", 0),
    "randrw": ("random", None),
    "strided": ("strided", 100),
}
_MADE_BYTES = 1 << 30
_DEFAULT_RUNTIME = 10.0
_FILL_BYTES = 1 << 20
_LOOK = 0.1  # seconds between two reports of progress

#: `progress(stage, done, total)`: stage is ``fill`` (blocks) or ``load`` (thousandths of it).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class IoSettings:
    """What `run` does. `image` None makes a raw one of `size` bytes in `folder`."""

    image: str | None = None
    format: str | None = None
    rw: str = "randread"
    block_bytes: int = 4096
    depth: int = 32
    jobs: int = 1  #: each with a part of the image of its own
    runtime: float | None = None  #: seconds; without it and `io_bytes`: 10
    size: int | None = None  #: bytes of the image that are used; None: all
    io_bytes: int | None = None  #: stop after that many
    cache: str = "writeback"
    engine: str = "auto"
    read_percent: int = 50  #: of rw and randrw
    stride: int | None = None  #: bytes from one block to the next, of ``strided``
    rate: float = 0  #: requests a second, of all jobs; latency then counts from when one is due
    verify: bool = False  #: blocks tell their place and generation, and are looked at when read
    seed: int = 1
    reopens: tuple[str, ...] = ()  #: cache modes to go through meanwhile, round and round
    every: float = 0.01  #: seconds between two reopens, on average
    folder: str | None = None

    def check(self) -> None:
        """Raises `OptionError`."""
        for name in ("block_bytes", "depth", "jobs"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1", option=name)
        for name, words in (("rw", PATTERNS), ("engine", ENGINES), ("cache", CACHE_MODES)):
            if getattr(self, name) not in words:
                raise OptionError(f"{name} is one of {', '.join(words)}", option=name)
        for cache in self.reopens:
            if cache not in CACHE_MODES:
                raise OptionError(f"cache is one of {', '.join(CACHE_MODES)}", option="reopens")
        if not 0 <= self.read_percent <= 100:
            raise OptionError("read_percent is 0 to 100", option="read_percent")
        if self.verify and self.block_bytes % 16:
            raise OptionError("verified blocks are a multiple of 16 bytes", option="block_bytes")
        if (self.stride is None) == (self.rw == "strided"):
            raise OptionError("strided, and nothing else, has a stride", option="stride")
        if self.stride is not None and (self.stride < 1 or self.stride % self.block_bytes):
            raise OptionError("a stride is a multiple of the block size", option="stride")
        if self.rate < 0 or (self.runtime is not None and self.runtime <= 0) or self.every <= 0:
            raise OptionError("times and rates are not negative", option="runtime")

    @property
    def reading(self) -> int:
        """The percentage of reads."""
        percent = PATTERNS[self.rw][1]
        return self.read_percent if percent is None else percent


@dataclass
class IoResult:
    """What was found: of all jobs together; nanoseconds."""

    settings: IoSettings
    image: dict[str, object]
    engine: str  #: what moved bytes that were not cached
    totals: list[Totals]
    latency: dict[str, Latency]  #: by the names of `Job.latency`
    intervals: list[Interval]
    started: float  #: seconds since 1970
    seconds: float
    cpu: tuple[float, float]  #: seconds of the process, in user and in kernel mode
    reopened_ns: list[int] = field(default_factory=list)  #: CLOCK_MONOTONIC
    reopen_ns: list[int] = field(default_factory=list)  #: how long each took
    messages: list[str] = field(default_factory=list)
    failed_reopens: int = 0

    @property
    def requests(self) -> tuple[int, int]:
        """Reads and writes that completed."""
        return sum(t.reads for t in self.totals), sum(t.writes for t in self.totals)

    @property
    def bytes(self) -> tuple[int, int]:
        """Read and written."""
        return sum(t.read_bytes for t in self.totals), sum(t.written_bytes for t in self.totals)

    @property
    def failed(self) -> int:
        """Requests."""
        return sum(t.failed for t in self.totals)

    @property
    def wrong(self) -> int:
        """Blocks that did not hold what was written."""
        return sum(t.wrong for t in self.totals)

    @property
    def clean(self) -> bool:
        """Nothing failed, nothing was wrong."""
        return not (self.failed or self.wrong or self.failed_reopens)


def run(settings: IoSettings, progress: Progress | None = None) -> IoResult:
    """Measure, and return what was found, also where that is bad.

    A given image is written to where `rw` says so, and with `verify` it is filled first. Raises
    what opening or making the image raises, and `OptionError`.
    """
    settings.check()
    report = progress or (lambda _stage, _done, _total: None)
    with ExitStack() as stack:
        path, made = settings.image, settings.image is None
        forget: Callable[[], None] | None = None
        if path is None:
            path, forget = stack.enter_context(_made(settings))
        writes = settings.reading < 100
        image = stack.enter_context(
            fdstash.open(
                path,
                "r+" if writes or made else "r",
                format="raw" if made else settings.format,
                cache=settings.cache,
            )
        )
        if forget is not None:
            forget()
        plans = _plans(settings, image)
        generations: list[array[int] | None] = [None] * len(plans)
        if made or (settings.verify and writes):
            generations = _fill(image, plans, report)
        return _measured(settings, image, plans, generations, report)


@contextmanager
def _made(settings: IoSettings) -> Iterator[tuple[str, Callable[[], None]]]:
    """A raw image of its own, and what removes its name once it is open.

    So a run that is killed leaves nothing, but where that happens before.
    """
    folder = settings.folder if settings.folder is not None else default_folder()
    with tempfile.TemporaryDirectory(prefix="fdstash-bench-", dir=folder) as own:
        path = os.path.join(own, "disk.raw")
        fdstash.create(path, "raw", settings.size or _MADE_BYTES)
        yield path, partial(shutil.rmtree, own)


def _plans(settings: IoSettings, image: fdstash.Image) -> list[Plan]:
    """A plan for each job."""
    size = image.size if settings.size is None else settings.size
    if size > image.size:
        raise OptionError(f"the image has {image.size} bytes, not {size}", option="size")
    blocks = size // settings.block_bytes // settings.jobs
    if blocks == 0:
        raise OptionError("the image is smaller than a block for each job", option="size")
    runtime, requests = settings.runtime or 0, 0
    if settings.io_bytes is not None:
        requests = max(1, settings.io_bytes // settings.block_bytes // settings.jobs)
    elif settings.runtime is None:
        runtime = _DEFAULT_RUNTIME
    return [
        Plan(
            offset=number * blocks * settings.block_bytes,
            blocks=blocks,
            block_bytes=settings.block_bytes,
            depth=settings.depth,
            engine=settings.engine,
            pattern=PATTERNS[settings.rw][0],
            stride=(settings.stride or settings.block_bytes) // settings.block_bytes,
            read_percent=settings.reading,
            requests=requests,
            runtime=runtime,
            rate=settings.rate / settings.jobs,
            seed=settings.seed + number,
            verify=settings.verify,
        )
        for number in range(settings.jobs)
    ]


def _fill(image: fdstash.Image, plans: list[Plan], report: Progress) -> list[array[int] | None]:
    """Write every block once, so that nothing that is read is a hole; the generations it has."""
    found: list[array[int] | None] = []
    total = sum(plan.blocks for plan in plans)
    done = 0
    for plan in plans:
        write = replace(
            plan, pattern="sequential", read_percent=0, requests=plan.blocks, runtime=0, rate=0
        )
        if not plan.verify and plan.block_bytes < _FILL_BYTES:
            write = _in_large_blocks(write)
        with Job(image, write) as job:
            job.start()
            while job.is_alive():
                job.join(_LOOK)
                report("fill", done + job.totals.written_bytes // plan.block_bytes, total)
            job.join()
            if job.totals.failed:
                code = -job.totals.error
                raise fdstash.ImageIOError(code, f"filling it: {os.strerror(code)}")
            found.append(job.generations)
        done += plan.blocks
    image.flush()
    return found


def _in_large_blocks(plan: Plan) -> Plan:
    """The same bytes in few requests; the last of them ends where the image allows."""
    size = plan.blocks * plan.block_bytes
    each = next((b for b in (_FILL_BYTES, 1 << 16, 1 << 12) if size % b == 0), plan.block_bytes)
    each = max(each, plan.block_bytes) if size % max(each, plan.block_bytes) == 0 else each
    return replace(
        plan, block_bytes=each, blocks=size // each, requests=size // each, depth=min(plan.depth, 8)
    )


def _measured(
    settings: IoSettings,
    image: fdstash.Image,
    plans: list[Plan],
    generations: list[array[int] | None],
    report: Progress,
) -> IoResult:
    with ExitStack() as stack:
        jobs = [
            stack.enter_context(Job(image, plan, generations=known))
            for plan, known in zip(plans, generations, strict=True)
        ]
        with image.queue(1, engine=settings.engine) as queue:
            engine = queue.engine
        result = IoResult(
            settings,
            {"path": image.files[0].name, "format": image.format, "size": image.size},
            engine,
            totals=[],
            latency={},
            intervals=[],
            started=time.time(),
            seconds=0,
            cpu=(0, 0),
        )
        before = resource.getrusage(resource.RUSAGE_SELF)
        for job in jobs:
            job.start()
        _attend(settings, image, jobs, result, report)
        for job in jobs:
            job.join()
        after = resource.getrusage(resource.RUSAGE_SELF)
        result.cpu = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        _collect(result, jobs)
    return result


def _attend(
    settings: IoSettings,
    image: fdstash.Image,
    jobs: list[Job],
    result: IoResult,
    report: Progress,
) -> None:
    """Reopen, and tell how far it is, until the jobs have ended."""
    rng = random.Random(settings.seed)  # noqa: S311 - pauses, nothing secret
    wanted = 0
    looked = 0.0
    while any(job.is_alive() for job in jobs):
        now = time.monotonic()
        if now - looked >= _LOOK:
            looked = now
            report("load", min(999, _done(jobs)), 1000)
        if not settings.reopens:
            next(job for job in jobs).join(_LOOK)
            continue
        time.sleep(rng.uniform(0, settings.every))
        for job in jobs:
            job.mark(placebo=True)
        time.sleep(rng.uniform(0, settings.every))
        for job in jobs:
            job.mark(placebo=False)
        start = time.monotonic_ns()
        try:
            image.reopen(cache=settings.reopens[wanted % len(settings.reopens)])
        except (Error, OSError) as error:
            result.failed_reopens += 1
            result.messages.append(f"reopen: {error}")
        else:
            result.reopen_ns.append(time.monotonic_ns() - start)
            result.reopened_ns.append(start)
        wanted += 1
    report("load", 1000, 1000)


def _done(jobs: list[Job]) -> int:
    """Thousandths, of the job that is least far."""
    parts = []
    for job in jobs:
        totals, plan = job.totals, job.plan
        ran = time.monotonic_ns() - totals.started_ns if totals.started_ns else 0
        by_time = ran / (plan.runtime * 1e9) if plan.runtime else 0
        by_count = totals.requests / plan.requests if plan.requests else 0
        parts.append(max(by_time, by_count))
    return int(1000 * min(parts))


def _collect(result: IoResult, jobs: list[Job]) -> None:
    result.totals = [job.totals for job in jobs]
    result.seconds = max(totals.nanoseconds for totals in result.totals) / 1e9
    for times in ("READ", "WRITE", "READ_DUE", "WRITE_DUE", "MARKED", "PLACEBO"):
        result.latency[times] = Latency.sum_of(job.latency(times) for job in jobs)
    result.intervals = sorted(each for job in jobs for each in job.intervals())
    for totals in result.totals:
        if totals.failed:
            result.messages.append(
                f"{totals.failed} requests failed, the first at {totals.failed_offset}:"
                f" {os.strerror(-totals.error)}"
            )
        if totals.wrong:
            result.messages.append(
                f"{totals.wrong} blocks did not hold what was written, the first at"
                f" {totals.wrong_offset}"
            )
