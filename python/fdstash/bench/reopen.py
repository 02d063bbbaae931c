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
from typing import Any

import fdstash
from fdstash.bench.cells import Cell, shares
from fdstash.bench.generator import Plan
from fdstash.bench.jobs import Generations, Jobs, fill, look_again
from fdstash.bench.naive import NaiveTarget
from fdstash.bench.result import Figures, Result
from fdstash.bench.schedule import Schedule, Step
from fdstash.bench.subject import Given, Made, Subject, default_folder
from fdstash.bench.target import ReopenTarget, Target, mismatch
from fdstash.bench.words import PATTERNS, Words
from fdstash.cache import CACHE_MODES
from fdstash.errors import Error, OptionError

__all__ = ["Settings", "run"]

#: Nothing of a job begins for so long after a failure, seconds: a guest would not retry at once.
_PAUSE = 0.001
_PROBES = 8
_PAGE = 4096

#: `progress(stage, done, total)`: stage is ``fdstash`` or ``naive``.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings(Words):
    """What `run` does. `image` None makes one of `extents` extents in `folder`.

    An image given is only read, whatever `rw` says, unless `write` is true; then it is written
    with the bytes that are there, which are looked at before, also without `verify`. It ends
    after `reopens`, or after `runtime` where that is sooner.
    """

    rw: str = "randrw"
    depth: int = 4
    jobs: int = 4
    verify: bool = True
    rate: float = 40_000  #: leaves some of two processors to whoever reopens
    every: float = 0.0025
    fsync: int = 2048
    write: bool = False
    aligned: bool = False  #: no block is odd
    reopens: int = 1000
    kinds: tuple[tuple[str, int], ...] | None = None  #: and how often each; None: `KINDS`
    failures: bool = True  #: also reopens that are made to fail
    extents: int = 64
    naive: bool = True

    def check(self) -> None:
        """Raises `OptionError`."""
        super().check()
        for name in ("reopens", "extents"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1", option=name)
        if self.block_bytes > 64 << 20:
            raise OptionError("blocks have at most 64 MiB", option="block_bytes")

    @property
    def stamped(self) -> bool:
        """Those of an image that is given are not."""
        return self.verify and self.image is None

    @property
    def reading(self) -> int:
        """The percentage of reads."""
        return super().reading if self.image is None or self.write else 100


def run(settings: Settings, progress: Progress | None = None) -> Result:
    """Measure, and return what was found, also where that is bad.

    Raises what opening or making the image raises, and `OptionError`. Whatever
    ends it, an image made is removed, and one given has the bytes that it had.
    """
    settings.check()
    report = progress or (lambda _stage, _done, _total: None)
    image: dict[str, Any] = {}
    started = time.time()

    def measure(stage: str, way: Callable[[Subject, str], Target]) -> Figures:
        with ExitStack() as stack:
            subject = _subject(settings, stack)
            return _Run(settings, subject, way, image).measure(
                lambda done, total: report(stage, done, total)
            )

    figures = measure("fdstash", ReopenTarget)
    naive = measure("naive", NaiveTarget) if settings.naive else None
    return Result(image, asdict(settings), figures, naive, started)


def _subject(settings: Settings, stack: ExitStack) -> Subject:
    if settings.image is not None:
        return Given(settings.image, format=settings.format, writable=settings.write)
    folder = settings.folder if settings.folder is not None else default_folder()
    return stack.enter_context(closing(Made(folder, settings.extents, settings.size)))


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
            self._files = target.files()
            plans = self._plans(target.image)
            self._describe(target.image, caches)
            schedule = Schedule(
                subject,
                target.image,
                caches=caches,
                reopens=settings.reopens,
                seed=settings.seed,
                kinds=dict(settings.kinds) if settings.kinds is not None else None,
                failures=settings.failures,
            )
            generations: Generations = [None] * len(plans)
            if subject.made:
                generations = fill(target.image, plans, lambda _done, _total: None)
            with Jobs(target.image, plans, generations) as jobs:
                jobs.start()
                self._reopen_all(target, jobs, schedule, report)
                jobs.stop()
                generations = jobs.generations
                figures.found = jobs.found()
            self._look_again(target.image, plans, generations)
            path = target.state.path
        self._leaked(descriptors)
        if subject.made:
            with subject.open(path, "r", "writeback") as again:
                self._look_again(again, plans, generations)
        for message in figures.found.complaints():
            figures.say(message)
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

    def _plans(self, image: fdstash.Image) -> list[Plan]:
        """One for each job."""
        settings = self._settings
        cells = self._subject.cells(
            image,
            settings.size,
            settings.block_bytes,
            settings.seed,
            odd_ones=not settings.aligned,
        )
        self._probes = cells[:: max(1, len(cells) // _PROBES)]
        dealt = shares(cells, settings.jobs, settings.seed)
        return [
            self._plan(image, number, share, rate=settings.rate / len(dealt))
            for number, share in enumerate(dealt)
        ]

    def _plan(self, image: fdstash.Image, number: int, share: list[Cell], *, rate: float) -> Plan:
        settings, made = self._settings, self._subject.made
        # Whole pages, so that aligned blocks lie in aligned memory.
        longest = max(settings.block_bytes, *(cell.length for cell in share), 1)
        room = -(-longest // _PAGE) * _PAGE
        verify = settings.verify or (settings.writing and not made)
        return Plan(
            offset=0,
            blocks=len(share),
            block_bytes=room,
            depth=settings.depth,
            engine=settings.engine,
            pattern=PATTERNS[settings.rw][0],
            stride=(settings.stride or settings.block_bytes) // settings.block_bytes,
            read_percent=settings.reading,
            rate=rate,
            flush_every=settings.fsync,
            pause=_PAUSE,
            seed=settings.seed + number,
            verify=verify,
            cells=share,
            baseline=_bytes_of(image, share, room) if verify and not made else None,
        )

    def _describe(self, image: fdstash.Image, caches: list[str]) -> None:
        self._image.update(
            {
                "path": self._subject.path,
                "made": self._subject.made,
                "format": image.format,
                "size": image.size,
                "files": len(self._files),
                "writes": self._settings.writing,
                "caches": caches,
            }
        )

    def _reopen_all(
        self, target: Target, jobs: Jobs, schedule: Schedule, report: Callable[[int, int], None]
    ) -> None:
        runtime = self._settings.runtime
        until = time.monotonic() + runtime if runtime is not None else float("inf")
        for done, step in enumerate(schedule.steps(target)):
            report(done, len(schedule))
            if time.monotonic() >= until:
                break
            if target.closes and step.in_place_only:
                continue
            self._pause()
            jobs.placebo()
            self._pause()
            self._step(target, jobs, step)
        report(len(schedule), len(schedule))

    def _pause(self) -> None:
        time.sleep(self._rng.uniform(0, self._settings.every))

    def _step(self, target: Target, jobs: Jobs, step: Step) -> None:
        """One reopen, and whether the image is then as it must be."""
        figures = self._figures
        before, descriptors = target.state, _descriptors() if step.refused else 0
        try:
            with step.arrange(target) as options:
                if options.get("mode") == "r":
                    jobs.hold_writes()
                begun = time.monotonic_ns()
                took = _attempt(target, jobs, options)
        except _NotReopenedError as failure:
            if step.refused:
                figures.provoked(step.kind, failure.errno_name)
            else:
                figures.failed_reopens += 1
                figures.say(f"{step.kind}: {failure}")
        else:
            figures.reopened_ns.append(begun)
            if step.refused:
                figures.provoked(step.kind, None)
            else:
                figures.reopened(step.kind, took)
        _follow(target, jobs)
        harm = self._harm(target)
        if harm:
            figures.lost(step.kind, harm)
            target.recover(before)
            _follow(target, jobs)
        if step.refused:
            self._leaked(descriptors)
        if target.state.mode == "r+":
            jobs.resume_writes()

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

    def _look_again(
        self, image: fdstash.Image, plans: list[Plan], generations: Generations
    ) -> None:
        """Every block once more, with nothing else going on."""
        figures = self._figures
        found = look_again(image, plans, generations)
        figures.failed_at_the_end += found.failed
        figures.wrong_at_the_end += found.wrong
        for message in found.complaints():
            figures.say(f"at the end: {message}")


class _NotReopenedError(Exception):
    """What a reopen raised, in words: the error itself refers to much by its traceback."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        code = getattr(error, "errno", None)
        self.errno_name = errno.errorcode.get(code or 0, type(error).__name__)


def _attempt(target: Target, jobs: Jobs, options: Mapping[str, Any]) -> int:
    try:
        with jobs.watched():
            return target.reopen(options)
    except (Error, OSError) as error:
        raise _NotReopenedError(error) from None


def _follow(target: Target, jobs: Jobs) -> None:
    """Let the load go on with the image that there is now, if there is another one."""
    if target.image is not jobs.image and not target.image.closed:
        jobs.attach(target.image)


def _bytes_of(image: fdstash.Image, cells: list[Cell], room: int) -> bytearray:
    """What they hold, each at a multiple of `room`."""
    found = bytearray(len(cells) * room)
    view = memoryview(found)
    for number, cell in enumerate(cells):
        image.preadv([view[number * room :][: cell.length]], cell.offset)
    return found


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
