"""Which calls of a fault matrix fail, and how: each class with what suits it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.support.faultshim import SHORT, FaultResult, FaultShim
from tests.support.tier import FULL

__all__ = ["EVERY", "FAULTS", "FOREVER", "PROPERTY", "SYNC", "Position", "Tally", "count_calls"]

PROPERTY = "fault positions"
"""Of a test's report: how many positions it has tried."""

FOREVER = 1_000_000
"""Every call from the position on: descriptors, memory or /proc that stay away."""

EVERY = FULL and "FDSTASH_SANITIZER" not in os.environ
"""Under a sanitizer a sample must do: what is looked for there shows at every position."""

COMMIT = 4
"""How often a commit asks again before it gives up and is taken back."""


def _once(*codes: int) -> tuple[tuple[int, int], ...]:
    return tuple((code, 1) for code in codes)


def _and_for(times: int, *codes: int) -> tuple[tuple[int, int], ...]:
    return tuple((code, times) for code in codes)


FAULTS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "openat": (
        *_once(errno.EMFILE, errno.ENOENT, errno.EACCES, errno.EIO, errno.ENOMEM, errno.EINTR),
        *_and_for(FOREVER, errno.EMFILE, errno.ENOENT),
    ),
    "dup": (*_once(errno.EMFILE, errno.ENOMEM), *_and_for(FOREVER, errno.EMFILE)),
    "dup3": (
        *_once(errno.EINTR, errno.EBUSY, errno.EMFILE),
        *_and_for(COMMIT, errno.EINTR, errno.EBUSY, errno.EMFILE),
    ),
    "F_GETFL": _once(errno.EIO, errno.EINTR),
    "F_SETFL": (
        *_once(errno.EINTR, errno.EIO, errno.EACCES),
        *_and_for(COMMIT, errno.EINTR, errno.EIO, errno.EACCES),
    ),
    "F_GETLK": _once(errno.EINTR, errno.EIO, errno.ENOMEM),
    "F_SETLK": _once(errno.EINTR, errno.EAGAIN, errno.EACCES, errno.EIO, errno.ENOMEM),
    "F_OTHER": _once(errno.EIO, errno.EINTR),
    "fstat": _once(errno.EIO, errno.EACCES, errno.ENOMEM),
    "statx": _once(errno.EIO, errno.EACCES, errno.ENOENT, errno.ENOMEM, errno.EINTR),
    "fstatfs": _once(errno.EIO, errno.EINTR, errno.ENOMEM),
    "lseek": _once(errno.EIO),
    "pread": (*_once(errno.EIO, errno.EINTR, errno.ENOMEM, SHORT), *_and_for(FOREVER, errno.EIO)),
    "pwrite": (*_once(errno.EIO, errno.EINTR, errno.ENOMEM, SHORT), *_and_for(FOREVER, errno.EIO)),
    "mmap": _once(errno.ENOMEM),
    "posix_memalign": (*_once(errno.ENOMEM), *_and_for(FOREVER, errno.ENOMEM)),
    "malloc": (*_once(errno.ENOMEM), *_and_for(FOREVER, errno.ENOMEM)),
    "fsync": _once(errno.EIO, errno.EINTR),
    "fdatasync": _once(errno.EIO, errno.EINTR),
    "sync_file_range": _once(errno.EIO, errno.EINTR),
    "close": _once(errno.EIO, errno.EINTR),
    "ftruncate": _once(errno.EIO, errno.EINTR, errno.EACCES),
    "ioctl": _once(errno.EIO, errno.EINTR, errno.EACCES),
    "getrlimit": _once(errno.EIO, errno.EACCES),
    "pthread_create": _once(errno.EAGAIN),
}
"""By class: (errno or SHORT, how many calls in a row)."""

SYNC = ("fsync", "fdatasync", "sync_file_range")

# A kind is counted by its name but for dup, which as a class holds F_DUPFD too.
_NO_CLASS_OF_ITS_OWN = ("any", "fcntl", "stat", "sync", "memory", "F_DUPFD")


@dataclass(frozen=True)
class Position:
    """One fault: the calls `index` to `index + times - 1` of a class."""

    call_class: str
    index: int
    action: int
    times: int = 1

    def __str__(self) -> str:
        what = "short" if self.action == SHORT else errno.errorcode[self.action]
        how_long = {1: "", FOREVER: " and all after it"}.get(
            self.times, f" and {self.times - 1} more"
        )
        return f"{self.call_class} {self.index}{how_long}: {what}"


def count_calls(met: FaultResult) -> dict[str, int]:
    """Calls by class. Fails on a class that nothing here makes fail."""
    counts = {
        name: count
        for name, count in met.counts.items()
        if count and name not in _NO_CLASS_OF_ITS_OWN
    }
    unknown = counts.keys() - FAULTS.keys()
    assert not unknown, f"the matrix has no faults for {unknown}"
    return counts


@dataclass
class Tally:
    """What was tried: by kind of call with the layout that it was made on, and by class."""

    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    """How many the loads have made and looked at meanwhile."""
    _planned: set[tuple[str, str]] = field(default_factory=set)

    def plan(self, counts: Mapping[str, int], where: str, kind: str) -> list[Position]:
        """Every position of these calls; in the short tier one in ten, and each class once."""
        chosen: list[Position] = []
        rng = random.Random(f"{where}: {kind}")
        for name in sorted(counts):
            every = [
                Position(name, index, action, times)
                for index in range(counts[name])
                for action, times in FAULTS[name]
            ]
            if not EVERY:
                sample = [position for position in every if rng.random() < 0.1]
                if not sample and (name, kind) not in self._planned:
                    sample = [rng.choice(every)]
                every = sample
            if every:
                self._planned.add((name, kind))
            chosen += every
        return chosen

    def add(self, where: str, kind: str, position: Position, *, fired: bool, failed: bool) -> None:
        row = self.kinds.setdefault(
            f"{where}: {kind}", {"positions": 0, "absorbed": 0, "failed": 0, "not_reached": 0}
        )
        if not fired:
            row["not_reached"] += 1
            return
        row["positions"] += 1
        row["failed" if failed else "absorbed"] += 1
        self.classes[position.call_class] = self.classes.get(position.call_class, 0) + 1

    def total(self, column: str = "positions") -> int:
        return sum(row[column] for row in self.kinds.values())

    def lines(self) -> list[str]:
        found = [
            f"{row['positions']:7} positions ({row['absorbed']} absorbed, {row['failed']} failed"
            f" and taken back): {kind}"
            for kind, row in self.kinds.items()
        ]
        return [*found, f"{self.total():7} positions in all, under {self.requests} requests"]


def attempt(
    shim: FaultShim, position: Position, action: Callable[[], object]
) -> tuple[object, BaseException | None, FaultResult]:
    """Do it with the fault, on this thread: what it returned or raised."""
    result, failure = None, None
    with shim.fault(
        position.call_class, position.index, position.action, times=position.times
    ) as met:
        try:
            result = action()
        except BaseException as error:  # noqa: BLE001 - looked at by the caller
            failure = error
    return result, failure, met


def error_name(code: int | None) -> str:
    return "no errno" if code is None else errno.errorcode.get(code, str(code))
