"""The same load and the same reopens on two storage daemons, in turn.

`Match` is the whole of `fdstash bench reopen --against`. One daemon runs at a time, on the same
image: a turn of ours and a turn of the peer's are a round, and which comes first alternates.
A turn is a load without reopens, and one with them.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import fdstash
from fdstash.bench.against_result import MatchResult, Reopens, Side, Turn
from fdstash.bench.daemons import OURS, PEERS, Daemon, ServedImage
from fdstash.bench.nbd_load import Measured, NbdLoad
from fdstash.bench.programs import need_program
from fdstash.bench.qmp import RefusedCommandError
from fdstash.bench.subject import default_folder
from fdstash.bench.words import Words
from fdstash.errors import OptionError

__all__ = ["FORMATS", "Match", "MatchSettings", "match"]

#: Of the images that can be made.
FORMATS = ("raw", "vmdk")
#: In the words of both daemons; and what a reopen changes.
_CACHES = ("writeback", "none")
_CHUNK = 1 << 20
#: Toggles before anything is measured: the first ones of a process cost more.
_WARM_UP = 8
#: No reopen begins so shortly before a load's end, seconds.
_MARGIN = 0.05
_ROUND_TRIP = "query-version"

#: `progress(stage, done, total)`: stage is ``turns``.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class MatchSettings(Words):
    """What `match` does. `image` None makes one, of `format` and in `folder`.

    An image that is given is only read.
    """

    rw: str = "randrw"
    depth: int = 16
    runtime: float | None = 5.0  #: seconds of each load
    peer: str = "qemu-storage-daemon"
    rounds: int = 3
    reopens: int | None = None  #: of each load at most; None: as many as there is time for
    extents: int = 64  #: of a VMDK that is made
    made_bytes: int = 256 << 20  #: without `size`
    peer_aio: str = "threads"  #: of qemu-storage-daemon

    def check(self) -> None:
        """Raises `OptionError`."""
        super().check()
        for name in ("rounds", "extents"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1", option=name)
        if self.reopens is not None and self.reopens < 1:
            raise OptionError("reopens must be at least 1", option="reopens")
        if self.runtime is None or self.runtime <= 2 * _MARGIN:
            raise OptionError(f"a load takes more than {2 * _MARGIN} s", option="runtime")
        if self.rw == "strided":
            raise OptionError("fio has no rw called strided", option="rw")
        if self.cache not in _CACHES:
            raise OptionError(
                f"a daemon's cache is {' or '.join(_CACHES)}, not {self.cache}", option="cache"
            )
        if self.peer not in PEERS:
            raise OptionError(f"there is no daemon called {self.peer}", option="against")
        if self.image is None and self.format not in (None, *FORMATS):
            raise OptionError(f"made are {', '.join(FORMATS)}", option="format")
        if self.image is not None and self.writing:
            raise OptionError("an image that is given is only read", option="rw")

    @property
    def seconds(self) -> float:
        """Of a load."""
        return self.runtime or 0.0


def match(settings: MatchSettings, progress: Progress | None = None) -> MatchResult:
    """All rounds, and what was found, also where that is bad.

    Raises `OptionError`, also for a program that is not there; `DaemonError` where a daemon ends;
    `Error` where fio fails; and what making or opening the image raises. Whatever ends it, the
    daemons are gone, and so is an image that was made.
    """
    turns = 2 * settings.rounds
    with Match(settings) as running:
        while running.turns_made < turns:
            if progress is not None:
                progress("turns", running.turns_made, turns)
            running.turn()
        if progress is not None:
            progress("turns", turns, turns)
        return running.result()


class Match:
    """A match that goes on turn by turn, until the end of the block. Owner: one thread."""

    def __init__(self, settings: MatchSettings) -> None:
        settings.check()
        for program in ("fio", settings.peer):
            need_program(program)
        self._settings = settings
        self._started = time.time()
        self.turns_made = 0
        self.sides = {name: Side() for name in (OURS, settings.peer)}
        with ExitStack() as stack:
            path = settings.image or _made(settings, stack)
            self._image = self._served(path)
            self._stack = stack.pop_all()

    def _served(self, path: str) -> ServedImage:
        settings = self._settings
        with fdstash.open(path, "r", format=settings.format) as image:
            self._about = {
                "path": path,
                "made": settings.image is None,
                "format": image.format,
                "size": image.size,
                "files": len(image.files),
            }
            files = [os.path.realpath(each.path) for each in image.files if each.path is not None]
            return ServedImage(
                path=path,
                format=image.format,
                files=files,
                writable=settings.writing,
                direct=settings.cache == "none",
                aio=settings.peer_aio,
            )

    def turn(self) -> str:
        """The next turn; whose it was. Two are a round."""
        round_, second = divmod(self.turns_made, 2)
        name = list(self.sides)[(round_ + second) % 2]
        with Daemon(name, self._image) as daemon:
            self._measure(daemon, self.sides[name])
        self.turns_made += 1
        return name

    def result(self) -> MatchResult:
        """What the turns so far have found."""
        return MatchResult(
            self._about, asdict(self._settings), self.sides, self._settings.peer, self._started
        )

    def _measure(self, daemon: Daemon, side: Side) -> None:
        side.version = side.version or daemon.version()
        self._warm_up(daemon, side)
        plain = self._load(daemon)
        if side.refused is None:
            reopens = Reopens()
            side.turns.append(Turn(plain, self._load(daemon, reopens), reopens))
        else:
            side.turns.append(Turn(plain, None, None))

    def _warm_up(self, daemon: Daemon, side: Side) -> None:
        """There and back; whether the daemon does it at all."""
        for number in range(_WARM_UP):
            direct = self._image.direct ^ (number % 2 == 0)
            before = daemon.direct_descriptors()
            try:
                daemon.monitor.execute(*daemon.reopen_command(direct=direct))
            except RefusedCommandError as error:
                side.refused = str(error)
                return
            after = daemon.direct_descriptors()
            grown = [after[path] - count for path, count in before.items()]
            left = sum(more <= 0 if direct else more >= 0 for more in grown)
            if left:
                side.refused = f"it said yes, and left {left} files as they were"
                return

    def _load(self, daemon: Daemon, reopens: Reopens | None = None) -> Measured:
        """One load, with reopens if they are to be counted."""
        settings = self._settings
        with NbdLoad(daemon.nbd, settings, settings.seconds, daemon.alive) as load:
            load.wait_until_begun()
            if reopens is not None:
                until = time.monotonic() + settings.seconds - _MARGIN
                self._reopen(daemon, reopens, until)
            return load.result()

    def _reopen(self, daemon: Daemon, reopens: Reopens, until: float) -> None:
        """The same moments in every turn, from the load's beginning to `until`."""
        settings = self._settings
        rng = random.Random(settings.seed)  # noqa: S311 - pauses, nothing secret
        direct = self._image.direct
        begun = time.monotonic_ns()
        while settings.reopens is None or reopens.asked < settings.reopens:
            pause = rng.uniform(0, 2 * settings.every)
            if time.monotonic() + pause > until:
                return
            time.sleep(pause)
            reopens.round_trips.append(daemon.monitor.timed(_ROUND_TRIP))
            command = daemon.reopen_command(direct=not direct)
            reopens.asked += 1
            reopens.at.append(time.monotonic_ns() - begun)
            try:
                reopens.times.append(daemon.monitor.timed(*command))
            except RefusedCommandError as error:
                reopens.at.pop()
                reopens.failed(str(error))
            else:
                direct = not direct

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def _made(settings: MatchSettings, stack: ExitStack) -> str:
    """An image without holes, in a folder of its own."""
    folder = stack.enter_context(
        tempfile.TemporaryDirectory(
            prefix="fdstash-bench-", dir=settings.folder or default_folder()
        )
    )
    size = settings.size or settings.made_bytes
    options: dict[str, Any] = {}
    form = settings.format or "vmdk"
    path = os.path.join(folder, f"disk.{form}")
    if form == "vmdk":
        each = -(-size // settings.extents // _CHUNK) * _CHUNK
        size = each * settings.extents
        options = {"subformat": "twoGbMaxExtentFlat", "extent_size": each}
    fdstash.create(path, form, size, **options)
    rng = random.Random(settings.seed)  # noqa: S311 - content, nothing secret
    with fdstash.open(path, "r+", format=form) as image:
        for offset in range(0, size, _CHUNK):
            image.pwrite(rng.randbytes(min(_CHUNK, size - offset)), offset)
    return path
