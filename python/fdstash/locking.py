"""QEMU-compatible image locks, on descriptions of their own.

The protocol is that of QEMU's file-posix driver: a shared OFD lock on byte 100+n
for permission n in use, on byte 200+n for permission n not shared with others.
An exclusive or shared lock on the description that serves the data would refuse
the new description of a reopen, or vanish with the old one; so each file has a
lock description that no reopen ever swaps.
"""

from __future__ import annotations

import enum
import errno
import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

from fdstash._ffi import ffi, lib
from fdstash.errors import LockError
from fdstash.opening import close_owned

__all__ = ["NOTHING", "READER", "WRITER", "Claim", "LockDescription", "LockSet", "Permission"]


class Permission(enum.IntFlag):
    """What a user of an image does, one bit each; bit n is lock byte 100+n."""

    CONSISTENT_READ = 1
    WRITE = 2
    WRITE_UNCHANGED = 4
    RESIZE = 8


class Claim(NamedTuple):
    """Permissions in use, and permissions that others must not use."""

    used: int
    unshared: int

    def union(self, other: Claim) -> Claim:
        """What both together need."""
        return Claim(self.used | other.used, self.unshared | other.unshared)

    def without(self, other: Claim) -> Claim:
        """What is not already in `other`."""
        return Claim(self.used & ~other.used, self.unshared & ~other.unshared)


_CHANGING = Permission.WRITE | Permission.RESIZE

NOTHING = Claim(0, 0)
#: Reads, and lets nobody write meanwhile; other readers are welcome.
READER = Claim(int(Permission.CONSISTENT_READ), int(_CHANGING))
#: Reads and writes alone.
WRITER = Claim(int(Permission.CONSISTENT_READ | _CHANGING), int(_CHANGING))

_BYTES = {100 + i: f'"{name}"' for i, name in enumerate(["read", "write", "", "resize"])}


def _explain(byte: int) -> str:
    if byte >= 200:
        return f"another program does not let others {_BYTES.get(byte - 100, 'use it so')}"
    return f"another program has taken {_BYTES.get(byte, 'a permission')} on it"


#: Over the claims of all descriptions: the graph of an open that outlived its
#: timeout may let go of one while the image makes another claim on it.
_claims_lock = threading.Lock()


def _in_forked_child() -> None:
    global _claims_lock  # noqa: PLW0603 - a thread that is not here may have held it
    _claims_lock = threading.Lock()


os.register_at_fork(after_in_child=_in_forked_child)


class LockDescription:
    """The lock description of one inode, shared by the graphs that use the inode.

    Owns `fd`. `identity` tells inodes apart. `passed`: the description came from
    outside, where others may hold it; locks must then be dropped one by one. Such
    a description serves one image at a time, since it has no conflict with itself.
    """

    __slots__ = ("claims", "fd", "identity", "name", "passed")

    def __init__(
        self, fd: int, identity: tuple[int, ...], name: str, *, passed: bool = False
    ) -> None:
        self.fd = fd
        self.identity = identity
        self.name = name
        self.passed = passed
        self.claims: dict[int, Claim] = {}  # by id of the LockSet

    def claimed(self, but: int | None = None) -> Claim:
        """The union of all claims, or of all but one holder's."""
        if not self.claims:
            return NOTHING
        total = NOTHING
        for holder, claim in self.claims.items():
            if holder != but:
                total = total.union(claim)
        return total


class LockSet:
    """The locks of one graph: a claim on each of its files.

    Owner: the thread that opens, reopens or closes the image.
    """

    def __init__(self) -> None:
        self._members: dict[tuple[int, ...], LockDescription] = {}
        self._writable: list[LockDescription] = []
        self._claim = READER  # on the writable ones
        self._fds: object = None

    def __len__(self) -> int:
        return len(self._members)

    def find(self, identity: tuple[int, ...]) -> LockDescription | None:
        """The description for that inode, if this set has one."""
        return self._members.get(identity)

    def join(self, description: LockDescription, claim: Claim, *, may_write: bool) -> None:
        """Claim on one more file. Raises `LockError`; then nothing was claimed."""
        with _claims_lock:
            _acquire([description], claim, description.claimed())
            description.claims[id(self)] = claim
        self._members[description.identity] = description
        if may_write:
            self._writable.append(description)
            self._claim = claim
            self._fds = None

    def _array(self) -> object:
        if self._fds is None:
            self._fds = ffi.new("int[]", [d.fd for d in self._writable])
        return self._fds

    def widen(self) -> None:
        """From reading to writing, on all files that may be written: all or none.

        Raises `LockError`, and then nothing has changed.
        """
        with _claims_lock:
            if self._writable and self._claim != WRITER:
                _acquire(self._writable, WRITER, self._claim, self._array())
            self._set(WRITER)

    def narrow(self) -> bool:
        """From writing to reading; False when the kernel refused, and more is held."""
        with _claims_lock:
            extra = self._claim.without(READER)
            self._set(READER)
            if not self._writable or extra == NOTHING:
                return True
            return _release(self._array(), len(self._writable), extra)

    def _set(self, claim: Claim) -> None:
        self._claim = claim
        for description in self._writable:
            description.claims[id(self)] = claim

    def close(self) -> None:
        """Drop every claim, and close descriptions that nobody else claims."""
        with _claims_lock:
            self._drop_all()
        self._members = {}
        self._writable = []
        self._fds = None

    def _drop_all(self) -> None:
        for description in self._members.values():
            claim = description.claims.pop(id(self), NOTHING)
            extra = claim.without(description.claimed())
            if extra != NOTHING and (description.claims or description.passed):
                _release(ffi.new("int[]", [description.fd]), 1, extra)
            if not description.claims:
                close_owned(description.fd)


def _release(fds: object, count: int, claim: Claim) -> bool:
    """Drop locks; asked twice, since what makes an unlock fail (ENOLCK) passes."""
    return any(
        lib.fdstash_lock_release(fds, count, claim.used, claim.unshared) == 0 for _ in range(2)
    )


# For a lock on one file, and for what the core says of a failure; under `_claims_lock`.
_one = ffi.new("int[1]")
_failed = ffi.new("size_t *")
_byte = ffi.new("int *")


def _acquire(
    descriptions: Sequence[LockDescription], claim: Claim, present: Claim, fds: object = None
) -> None:
    """On one description, or on those whose descriptors are in `fds`."""
    if fds is None:
        fds = _one
        _one[0] = descriptions[0].fd
    rc = lib.fdstash_lock_acquire(
        fds,
        len(descriptions),
        claim.used,
        claim.unshared,
        present.used,
        present.unshared,
        _failed,
        _byte,
    )
    if rc < 0:
        name, byte = descriptions[_failed[0]].name, _byte[0]
        if rc == -errno.EAGAIN:
            message = f"the image is in use: {_explain(byte)} (lock byte {byte})"
        else:
            message = f"lock byte {byte}: {os.strerror(-rc)}; lock=False does without locks"
        raise LockError(-rc, message, name)
