"""Reopen an image under a verified load, a thousand times, and count what goes wrong.

`run` is the whole of `fdstash bench reopen`. It uses the process as a whole: it
lowers the soft RLIMIT_NOFILE for moments, and counts descriptors, so that nothing
else should run beside it. It does not raise the limit, which its caller may do.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Any

import fdstash
from fdstash.bench.content import Content
from fdstash.bench.histogram import Histogram
from fdstash.bench.inflight import InFlight
from fdstash.bench.load import Load, Requestable
from fdstash.bench.naive import NaiveTarget
from fdstash.bench.result import Figures, Result
from fdstash.bench.schedule import Schedule, Step
from fdstash.bench.subject import Given, Made, Subject, default_folder
from fdstash.bench.target import Reopened, ReopenTarget, Target, mismatch
from fdstash.cache import CACHE_MODES
from fdstash.errors import Error, OptionError

__all__ = ["Settings", "run"]

#: `progress(stage, done, total)`: stage is ``fdstash`` or ``naive``.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What `run` does. `image` None makes one of `extents` extents in `folder`."""

    image: str | None = None
    format: str | None = None
    write: bool = False  #: on an image given: also write, the bytes that are there
    reopens: int = 1000
    threads: int = 4
    block_bytes: int = 4096
    extents: int = 64
    cache: str = "writeback"  #: the mode to begin with
    seed: int = 1
    naive: bool = True
    folder: str | None = None
    gap: float = 0.0025  #: seconds between a reopen and a placebo instant, at most

    def check(self) -> None:
        """Raises `OptionError`."""
        for name in ("reopens", "threads", "block_bytes", "extents"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1", option=name)
        if self.block_bytes > 64 << 20:
            raise OptionError("blocks have at most 64 MiB", option="block_bytes")


def run(settings: Settings, progress: Progress | None = None) -> Result:
    """Measure, and return what was found, also where that is bad.

    Raises what opening or making the image raises, and `OptionError`. Whatever
    ends it, an image made is removed, and one given has the bytes that it had.
    """
    settings.check()
    report = progress or (lambda _stage, _done, _total: None)
    image: dict[str, Any] = {}

    def measure(stage: str, way: Callable[[Subject, str], Target]) -> Figures:
        with ExitStack() as stack:
            subject = _subject(settings, stack)
            return _Run(settings, subject, way, image).measure(
                lambda done, total: report(stage, done, total)
            )

    figures = measure("fdstash", ReopenTarget)
    naive = measure("naive", NaiveTarget) if settings.naive else None
    return Result(image, asdict(settings), figures, naive)


def _subject(settings: Settings, stack: ExitStack) -> Subject:
    if settings.image is not None:
        return Given(settings.image, format=settings.format, writable=settings.write)
    folder = settings.folder if settings.folder is not None else default_folder()
    return stack.enter_context(closing(Made(folder, settings.extents)))


class _Run:
    """One way to reopen, measured. Owner: one thread."""

    def __init__(
        self,
        settings: Settings,
        subject: Subject,
        way: Callable[[Subject, str], Target],
        image: dict[str, Any],
    ) -> None:
        self._settings = settings
        self._subject = subject
        self._way = way
        self._image = image
        self._figures = Figures()
        self._rng = random.Random(settings.seed)  # noqa: S311 - pauses, nothing secret

    def measure(self, report: Callable[[int, int], None]) -> Figures:
        """From the open to the close and one more look."""
        figures, settings, subject = self._figures, self._settings, self._subject
        caches = self._usable_caches()
        descriptors = _descriptors()
        begun = time.perf_counter()
        with ExitStack() as stack:
            target = self._way(subject, settings.cache)
            stack.callback(target.close)
            content = subject.content(target.opened, settings.block_bytes, settings.seed)
            self._files = target.files()
            self._probes = content.cells[:: max(1, len(content.cells) // 8)]
            self._describe(target.opened, caches)
            schedule = Schedule(
                subject, self._files, caches=caches, reopens=settings.reopens, seed=settings.seed
            )
            load = Load(
                target.image,
                content,
                threads=settings.threads,
                block_bytes=settings.block_bytes,
                seed=settings.seed,
                writes=subject.writable,
            )
            self._in_flight = InFlight(load.logs)
            with load:
                self._reopen_all(target, load, schedule, report)
            self._count_requests(load)
            self._verify_all(target.image, content)
            path = target.state.path
        self._leaked(descriptors)
        if subject.made:
            with subject.open(path, "r", "writeback") as again:
                self._verify_all(again, content)
        figures.seconds = time.perf_counter() - begun
        return figures

    def _usable_caches(self) -> list[str]:
        """The cache modes that the image's file system bears."""
        try:
            self._subject.open(self._subject.path, "r", "none").close()
        except (Error, OSError) as error:
            if error.__class__ is OptionError or getattr(error, "errno", None) != errno.EINVAL:
                raise
            return [name for name, mode in CACHE_MODES.items() if not mode.direct]
        return list(CACHE_MODES)

    def _describe(self, image: fdstash.Image, caches: list[str]) -> None:
        self._image.update(
            {
                "path": self._subject.path,
                "made": self._subject.made,
                "format": image.format,
                "size": image.size,
                "files": len(self._files),
                "writes": self._subject.writable,
                "caches": caches,
            }
        )

    def _reopen_all(
        self,
        target: Target,
        load: Load,
        schedule: Schedule,
        report: Callable[[int, int], None],
    ) -> None:
        for done, step in enumerate(schedule.steps(target)):
            report(done, len(schedule))
            self._pause()
            self._in_flight.mark(perf_counter_ns(), placebo=True)
            self._pause()
            if not (target.closes and step.in_place_only):
                self._step(target, load, step)
            self._in_flight.collect()
        report(len(schedule), len(schedule))

    def _pause(self) -> None:
        time.sleep(self._rng.uniform(0, self._settings.gap))

    def _step(self, target: Target, load: Load, step: Step) -> None:
        """One reopen, and whether the image is then as it must be."""
        figures = self._figures
        before, descriptors = target.state, _descriptors() if step.refused else 0
        try:
            with step.arrange(target) as options:
                if options.get("mode") == "r":
                    load.hold_writes()
                done = _attempt(target, options)
        except _NotReopenedError as failure:
            if step.refused:
                figures.provoked(step.kind, failure.errno_name)
            else:
                figures.failed_reopens += 1
                figures.say(f"{step.kind}: {failure}")
        else:
            self._in_flight.mark(done.instant, placebo=False)
            if step.refused:
                figures.provoked(step.kind, None)
            else:
                figures.reopened(step.kind, done.nanoseconds)
        harm = self._harm(target)
        if harm:
            figures.lost(step.kind, harm)
            target.recover(before)
        if step.refused:
            self._leaked(descriptors)
        if target.state.mode == "r+":
            load.resume_writes()

    def _harm(self, target: Target) -> str:
        """Why the image is not what it must be; empty when it is."""
        try:
            harm = mismatch(target.files(), self._files, target.state)
            for cell in self._probes:
                if not harm and len(target.image.pread(1, cell.offset)) != 1:
                    harm = f"there is nothing at {cell.offset}"
        except (Error, OSError) as error:
            return str(error)
        return harm

    def _leaked(self, before: int) -> None:
        more = _descriptors() - before
        self._figures.leaked_descriptors = max(self._figures.leaked_descriptors, more)

    def _count_requests(self, load: Load) -> None:
        figures, in_flight = self._figures, self._in_flight
        in_flight.collect()
        times = Histogram()
        for log in load.logs:
            times.add(log.histogram)
        figures.requests = len(times)
        figures.failed_requests += load.failed
        figures.wrong_blocks += load.wrong
        figures.request_p50_ns = times.percentile(50)
        figures.request_p99_ns = times.percentile(99)
        figures.longest_request_ns = times.largest
        figures.in_flight_p999_ns = in_flight.percentile(99.9, placebo=False)
        figures.in_flight_requests = in_flight.count(placebo=False)
        figures.placebo_p999_ns = in_flight.percentile(99.9, placebo=True)
        figures.placebo_requests = in_flight.count(placebo=True)
        for message in load.messages:
            figures.say(message)

    def _verify_all(self, image: Requestable, content: Content) -> None:
        """Every cell once more, with nothing else going on."""
        figures = self._figures
        for number, (offset, length) in enumerate(content.cells):
            expected = content.expected(number)
            try:
                data = image.pread(length, offset)
            except (Error, OSError) as error:
                figures.failed_requests += 1
                figures.say(f"at the end: {error}")
                continue
            if expected is not None and data != expected:
                figures.wrong_blocks += 1
                figures.say(f"at the end: wrong bytes in the {length} at {offset}")


class _NotReopenedError(Exception):
    """What a reopen raised, in words: the error itself refers to much by its traceback."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        code = getattr(error, "errno", None)
        self.errno_name = errno.errorcode.get(code or 0, type(error).__name__)


def _attempt(target: Target, options: Mapping[str, Any]) -> Reopened:
    try:
        return target.reopen(options)
    except (Error, OSError) as error:
        raise _NotReopenedError(error) from None


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
