"""Descriptors that clients pass in: those of one client, by name, and sets that all share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fdstash.errors import ImageIOError
from fdstash.monitor.errors import QmpError
from fdstash.stash import FDStash

__all__ = [
    "FdSets",
    "Identity",
    "Passed",
    "add_dup",
    "close_all",
    "copy_all",
    "fdset_number",
    "identities",
    "identity",
    "mode_of",
    "offer",
    "set_of",
]

_SET_PREFIX = "/dev/fdset/"
_MODES = ("rdonly:", "wronly:", "rdwr:")
_MAX_NAME = 4096  # bytes; PATH_MAX
_NONE = "No file descriptor supplied via SCM_RIGHTS"

#: What tells files apart: the device, and the number on it (`os.stat`).
Identity = tuple[int, int]


def identity(fd: int) -> Identity:
    """Of the file that a descriptor leads to."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def identities(stash: FDStash, name: str) -> set[Identity]:
    """Of what a stash holds under a name."""
    fds = stash.dup_all(name)
    try:
        return {identity(fd) for fd in fds}
    finally:
        close_all(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors of others' files: what close says then means nothing."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def set_of(name: str) -> int | None:
    """N of ``/dev/fdset/N``; None for any other name."""
    number = name.removeprefix(_SET_PREFIX)
    if number == name or not (number.isascii() and number.isdecimal() and len(number) < 19):
        return None
    return int(number)


def fdset_number(filename: str) -> int | None:
    """As `set_of`, of what a client has given. Raises `QmpError` where N is no number."""
    number = set_of(filename)
    if number is None and filename.startswith(_SET_PREFIX):
        raise QmpError(f"'{filename[:64]}' names no set of descriptors: /dev/fdset/ and a number")
    return number


class Passed:
    """What one client has passed in. Its thread only."""

    def __init__(self, limit: int) -> None:
        self.stash = FDStash()
        self._limit = limit
        self._waiting: list[int] = []  # for the next command that takes one
        self._why = _NONE

    def arrived(self, fds: list[int], *, cut: bool) -> int:
        """Keep what came with one message; how many older ones were closed for it.

        `cut`: the kernel had to leave some out. Then all are closed.
        """
        dropped = len(self._waiting)
        close_all(self._waiting)
        self._waiting = fds
        self._why = _NONE
        if cut:
            self._why = (
                "Descriptors were cut off on the way (MSG_CTRUNC); all that came with them were"
                " closed. Pass fewer at once, or raise the daemon's LimitNOFILE"
            )
            close_all(fds)
            self._waiting = []
        return dropped

    def take(self) -> int:
        """The first of those that came last; the others are closed. The caller owns it."""
        if not self._waiting:
            raise QmpError(self._why)
        fd, *others = self._waiting
        self._waiting = []
        close_all(others)
        return fd

    def getfd(self, name: str) -> None:
        """See the command."""
        fd = self.take()
        try:
            self._check(name)
            self.stash.give(name, fd)
        except BaseException:
            close_all([fd])
            raise

    def _check(self, name: str) -> None:
        if not name or name[0].isdecimal() or "\0" in name or len(name) > _MAX_NAME:
            raise QmpError("Parameter 'fdname' expects a name not starting with a digit")
        if name not in self.stash and len(self.stash) >= self._limit:
            raise QmpError(f"This monitor holds {self._limit} descriptors, and may hold no more")

    def closefd(self, name: str) -> None:
        """See the command."""
        try:
            close_all([self.stash.take(name)])
        except ImageIOError:
            raise QmpError(f"File descriptor named '{name}' not found") from None

    def close(self) -> None:
        """The client has gone."""
        close_all(self._waiting)
        self._waiting = []
        self.stash.close()


class FdSets:
    """The one table of sets. Any thread."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._sets: dict[int, dict[int, str | None]] = {}

    def add(self, fd: int, number: int | None, opaque: str | None) -> dict[str, int]:
        """Takes `fd` over; if that raises, the caller still owns it."""
        if number is not None and number < 0:
            raise QmpError("Parameter 'fdset-id' expects a non-negative value")
        with self._lock:
            if sum(map(len, self._sets.values())) >= self._limit:
                raise QmpError(f"The sets hold {self._limit} descriptors, and may hold no more")
            kept = fd
            if fd < 3:
                kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
                os.close(fd)
            if number is None:
                number = next(n for n in range(len(self._sets) + 1) if n not in self._sets)
            self._sets.setdefault(number, {})[kept] = opaque
            return {"fdset-id": number, "fd": kept}

    def remove(self, number: int, fd: int | None) -> None:
        """Close one, or all."""
        with self._lock:
            members = self._sets.get(number, {})
            gone = list(members) if fd is None else [fd] if fd in members else []
            if not gone:
                which = f"fdset-id:{number}" + ("" if fd is None else f", fd:{fd}")
                raise QmpError(f"File descriptor named '{which}' not found")
            for each in gone:
                del members[each]
            close_all(gone)
            if not members:
                del self._sets[number]

    def query(self) -> list[dict[str, Any]]:
        """As `query-fdsets` answers."""
        with self._lock:
            return [
                {
                    "fdset-id": number,
                    "fds": [
                        {"fd": fd, **({} if opaque is None else {"opaque": opaque})}
                        for fd, opaque in members.items()
                    ],
                }
                for number, members in sorted(self._sets.items())
            ]

    def offer_to(self, stash: FDStash) -> None:
        """Add a dup of each under the names that serve a file."""
        with self._lock:
            for number, members in self._sets.items():
                for fd, opaque in members.items():
                    for name in _names(number, opaque):
                        if identities(stash, name) <= {identity(fd)}:
                            add_dup(stash, name, fd)

    def __bool__(self) -> bool:
        return bool(self._sets)

    def __contains__(self, number: object) -> bool:
        return number in self._sets

    def drop(self, but: set[int]) -> int:
        """Close all sets other than those; how many descriptors that were."""
        with self._lock:
            gone = [fd for n, members in self._sets.items() if n not in but for fd in members]
            self._sets = {n: members for n, members in self._sets.items() if n in but}
            close_all(gone)
            return len(gone)


def _names(number: int, opaque: str | None) -> Iterator[str]:
    yield f"{_SET_PREFIX}{number}"
    if opaque:
        for mode in _MODES:
            opaque = opaque.removeprefix(mode)
        if opaque and "\0" not in opaque and not opaque.startswith(_SET_PREFIX):
            yield opaque


def add_dup(stash: FDStash, name: str, fd: int) -> None:
    """Add a duplicate of `fd` to `stash`."""
    dup = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        stash.add(name, dup)
    except BaseException:
        close_all([dup])
        raise


def offer(sets: FdSets, *stashes: FDStash | None) -> FDStash | None:
    """A stash of dups of all that is there to open files with; None where there is nothing."""
    filled = [stash for stash in stashes if stash]
    if not filled and not sets:
        return None
    made = FDStash()
    try:
        for stash in filled:
            copy_all(stash, made)
        sets.offer_to(made)
    except BaseException:
        made.close()
        raise
    return made


def copy_all(source: FDStash, target: FDStash, names: Iterable[str] | None = None) -> None:
    """Add dups to `target` of what `source` holds, and `target` has not in that mode.

    A name is one file: where `target` has it, those of another file are left out.
    """
    for name in source.names() if names is None else names:
        held = target.dup_all(name)
        try:
            known = {mode_of(fd) for fd in held}
            file = identity(held[0]) if held else None
        finally:
            close_all(held)
        fds = source.dup_all(name)
        try:
            while fds:
                mode = mode_of(fds[0])
                if mode in known or file not in (None, identity(fds[0])):
                    close_all(fds[:1])
                else:
                    known.add(mode)
                    target.add(name, fds[0])
                fds.pop(0)
        finally:
            close_all(fds)


def mode_of(fd: int) -> int:
    """Access mode and O_DIRECT."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_DIRECT)
