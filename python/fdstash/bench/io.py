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
from dataclasses import dataclass, field
from functools import partial

import fdstash
from fdstash.bench.generator import Plan
from fdstash.bench.jobs import Found, Jobs, fill
from fdstash.bench.subject import default_folder
from fdstash.bench.words import PATTERNS, Words
from fdstash.cache import CACHE_MODES
from fdstash.errors import Error, OptionError

__all__ = ["IoResult", "IoSettings", "run"]

_MADE_BYTES = 1 << 30
_DEFAULT_RUNTIME = 10.0
_LOOK = 0.1  # seconds between two reports of progress

#: `progress(stage, done, total)`: stage is ``fill`` (blocks) or ``load`` (thousandths of it).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class IoSettings(Words):
    """What `run` does. `image` None makes a raw one of `size` bytes in `folder`.

    Without `runtime` and `io_bytes` it takes 10 seconds.
    """

    io_bytes: int | None = None  #: stop after that many
    reopens: tuple[str, ...] = ()  #: cache modes to go through meanwhile, round and round

    def check(self) -> None:
        """Raises `OptionError`."""
        super().check()
        for cache in self.reopens:
            if cache not in CACHE_MODES:
                raise OptionError(f"cache is one of {', '.join(CACHE_MODES)}", option="reopens")


@dataclass
class IoResult:
    """What was found; nanoseconds."""

    settings: IoSettings
    image: dict[str, object]
    engine: str  #: what moved bytes that were not cached
    found: Found
    started: float  #: seconds since 1970
    cpu: tuple[float, float]  #: seconds of the process, in user and in kernel mode
    reopened_ns: list[int] = field(default_factory=list)  #: CLOCK_MONOTONIC
    reopen_ns: list[int] = field(default_factory=list)  #: how long each took
    messages: list[str] = field(default_factory=list)
    failed_reopens: int = 0

    @property
    def requests(self) -> tuple[int, int]:
        """Reads and writes that completed."""
        return self.found.requests

    @property
    def seconds(self) -> float:
        """As `Found.seconds`."""
        return self.found.seconds

    @property
    def clean(self) -> bool:
        """Nothing failed, nothing was wrong."""
        return not (self.found.failed or self.found.wrong or self.failed_reopens)


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
        writes = settings.writing
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
            generations = fill(image, plans, lambda done, total: report("fill", done, total))
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
            flush_every=settings.fsync,
            seed=settings.seed + number,
            verify=settings.verify,
        )
        for number in range(settings.jobs)
    ]


def _measured(
    settings: IoSettings,
    image: fdstash.Image,
    plans: list[Plan],
    generations: list[array[int] | None],
    report: Progress,
) -> IoResult:
    with Jobs(image, plans, generations) as jobs:
        with image.queue(1, engine=settings.engine) as queue:
            engine = queue.engine
        result = IoResult(
            settings,
            {"path": image.files[0].name, "format": image.format, "size": image.size},
            engine,
            Found(),
            started=time.time(),
            cpu=(0, 0),
        )
        before = resource.getrusage(resource.RUSAGE_SELF)
        jobs.start()
        _attend(settings, image, jobs, result, report)
        jobs.join()
        after = resource.getrusage(resource.RUSAGE_SELF)
        result.cpu = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        result.found = jobs.found()
        result.messages += result.found.complaints()
    return result


def _attend(
    settings: IoSettings, image: fdstash.Image, jobs: Jobs, result: IoResult, report: Progress
) -> None:
    """Reopen, and tell how far it is, until the jobs have ended."""
    rng = random.Random(settings.seed)  # noqa: S311 - pauses, nothing secret
    wanted = 0
    looked = 0.0
    while jobs.running:
        now = time.monotonic()
        if now - looked >= _LOOK:
            looked = now
            report("load", min(999, jobs.done()), 1000)
        if not settings.reopens:
            jobs.wait(_LOOK)
            continue
        time.sleep(rng.uniform(0, settings.every))
        jobs.placebo()
        time.sleep(rng.uniform(0, settings.every))
        try:
            with jobs.watched():
                start = time.monotonic_ns()
                image.reopen(cache=settings.reopens[wanted % len(settings.reopens)])
                took = time.monotonic_ns() - start
        except (Error, OSError) as error:
            result.failed_reopens += 1
            result.messages.append(f"reopen: {error}")
        else:
            result.reopen_ns.append(took)
            result.reopened_ns.append(start)
        wanted += 1
    report("load", 1000, 1000)
