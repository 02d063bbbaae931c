"""Failures made on purpose: each takes something away that a reopen needs.

A sabotage is a context manager: entered with the target, it gives the options of
the reopen that must be refused while it lasts, and puts everything right when it is
left. None of them touches a file of an image that is not ours.
"""

from __future__ import annotations

import ctypes
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import fdstash
from fdstash.bench.subject import Made, Subject
from fdstash.bench.target import Target

__all__ = ["Sabotage", "sabotages"]

Options = dict[str, Any]
_Provoke = Callable[[Target], AbstractContextManager[Options]]

_LOOKS = 50
_SETTLE = 0.02  # seconds

_STRANGER = 65534  # the user id of nobody


class Sabotage(NamedTuple):
    """One way to make a reopen fail."""

    label: str
    provoke: _Provoke
    in_place_only: bool = False  #: means nothing to close-then-open


def sabotages(subject: Subject) -> list[Sabotage]:
    """All that can be done to this image on this machine."""
    found = [
        Sabotage("no image at the new path", _no_such_path),
        Sabotage("a directory at the new path", _directory),
        Sabotage("descriptor limit reached half-way", _limit_half_way),
        Sabotage("descriptor limit below what is open", _limit_below),
        Sabotage("another file's descriptor in the stash", _wrong_stash, in_place_only=True),
        Sabotage("the prepare callable raises", _prepare_raises, in_place_only=True),
    ]
    if isinstance(subject, Made):
        found += [
            Sabotage("an extent moved away", _moved(subject)),
            Sabotage("another file in an extent's place", _replaced(subject)),
            Sabotage("a directory in an extent's place", _directory_instead(subject)),
            Sabotage("a smaller image at the new path", _smaller(subject)),
        ]
    found += _permission(subject)
    return found


# -- paths


@contextmanager
def _no_such_path(target: Target) -> Iterator[Options]:
    yield {"path": f"{target.state.path}.is-not-there"}


@contextmanager
def _directory(target: Target) -> Iterator[Options]:
    yield {"path": os.path.dirname(target.state.path) or "."}


def _away(path: str) -> AbstractContextManager[None]:
    @contextmanager
    def moving() -> Iterator[None]:
        os.rename(path, f"{path}.away")
        try:
            yield
        finally:
            os.rename(f"{path}.away", path)

    return moving()


def _moved(subject: Made) -> _Provoke:
    turn = iter(range(1 << 60))

    @contextmanager
    def provoke(target: Target) -> Iterator[Options]:
        with _away(subject.extent(7 * next(turn))):
            yield {"path": target.state.path}

    return provoke


def _replaced(subject: Made) -> _Provoke:
    turn = iter(range(1 << 60))

    @contextmanager
    def provoke(target: Target) -> Iterator[Options]:
        path = subject.extent(5 * next(turn) + 1)
        size = os.stat(path).st_size
        with _away(path):
            with open(path, "xb") as file:
                file.truncate(size)
            yield {"path": target.state.path}

    return provoke


def _directory_instead(subject: Made) -> _Provoke:
    turn = iter(range(1 << 60))

    @contextmanager
    def provoke(target: Target) -> Iterator[Options]:
        path = subject.extent(3 * next(turn) + 2)
        with _away(path):
            os.mkdir(path)
            try:
                yield {"path": target.state.path}
            finally:
                os.rmdir(path)

    return provoke


def _smaller(subject: Made) -> _Provoke:
    path = os.path.join(subject.folder, "smaller.vmdk")
    fdstash.create(path, "vmdk", subject.size // 2)

    @contextmanager
    def provoke(_target: Target) -> Iterator[Options]:
        yield {"path": path}

    return provoke


# -- descriptors


@contextmanager
def _soft_limit(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _limit_with(free: int, taken: set[int]) -> int:
    """The limit below which there are just `free` numbers that are not `taken`."""
    limit = 3
    while free or limit in taken:
        free -= limit not in taken
        limit += 1
    return limit


def _taken() -> set[int]:
    """The numbers in use, once it is the same ones for a while: old ones may yet be closed."""
    seen = {int(name) for name in os.listdir("/proc/self/fd")}
    for _ in range(_LOOKS):
        time.sleep(_SETTLE)
        before, seen = seen, {int(name) for name in os.listdir("/proc/self/fd")}
        if before == seen:
            break
    return seen


@contextmanager
def _limit_half_way(target: Target) -> Iterator[Options]:
    """Half of the descriptors that are needed can still be had."""
    used = _taken()
    options = {"path": target.state.path}
    with _soft_limit(_limit_with(len(target.files()) // 2, used)):
        yield options


@contextmanager
def _limit_below(target: Target) -> Iterator[Options]:
    """As when a limit is set on a running program: what is open stays open.

    Closing the image does not make room enough to open it again.
    """
    slots = {file.fd for file in target.files()}
    others = _taken() - slots
    options = {"path": target.state.path}
    with _soft_limit(_limit_with(len(slots) // 2, others)):
        yield options


@contextmanager
def _wrong_stash(target: Target) -> Iterator[Options]:
    victim = target.files()[-1]
    with tempfile.NamedTemporaryFile(prefix="fdstash-bench-") as other, fdstash.FDStash() as stash:
        os.truncate(other.name, victim.size)
        access = os.O_RDWR if victim.mode == "r+" else os.O_RDONLY
        stash.give(victim.name, os.open(other.name, access | os.O_CLOEXEC))
        yield {"stash": stash, "cache": "writeback"}


class _Change(Exception):  # noqa: N818 - what a caller's own code might raise
    pass


@contextmanager
def _prepare_raises(_target: Target) -> Iterator[Options]:
    def prepare() -> None:
        raise _Change("the last copy failed")

    yield {"prepare": prepare}


# -- permission


def _permission(subject: Subject) -> list[Sabotage]:
    """Root is refused nothing by mode bits, so its thread becomes another user for a while."""
    if os.geteuid() != 0:
        if not isinstance(subject, Made):
            return []
        return [Sabotage("permission taken away from an extent", _mode_bits(subject))]
    flags = os.O_RDWR if subject.writable else os.O_RDONLY
    with _as_stranger() as became:
        if not became or _may_open(subject.path, flags):
            return []
    return [Sabotage(f"permission taken away: as user {_STRANGER}", _another_user)]


def _may_open(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC))
    except PermissionError:
        return False
    return True


@contextmanager
def _as_stranger() -> Iterator[bool]:
    """Gives whether this thread, and no other, now has a stranger's rights to files."""
    setfsuid = ctypes.CDLL(None).setfsuid
    before = setfsuid(_STRANGER)
    try:
        yield setfsuid(-1) == _STRANGER
    finally:
        setfsuid(before)


@contextmanager
def _another_user(target: Target) -> Iterator[Options]:
    with _as_stranger():
        yield {"path": target.state.path}


def _mode_bits(subject: Made) -> _Provoke:
    turn = iter(range(1 << 60))

    @contextmanager
    def provoke(target: Target) -> Iterator[Options]:
        path = subject.extent(11 * next(turn) + 3)
        os.chmod(path, 0)
        try:
            yield {"path": target.state.path}
        finally:
            os.chmod(path, 0o600)

    return provoke
