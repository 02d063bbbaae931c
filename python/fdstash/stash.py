"""`FDStash`: named descriptors, after the 2011 RFC.

Whoever gives a descriptor gives it away; whoever takes one owns it. Under one
name a stash can hold several open file descriptions that differ in access mode
and O_DIRECT, as QEMU's fdsets do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fdstash._ffi import check, ffi, lib
from fdstash.errors import ClosedError, ImageIOError

if TYPE_CHECKING:
    import socket

__all__ = ["FDStash"]

_CLOSED = "the stash is closed"


def _encode(name: str) -> bytes:
    raw = os.fsencode(name)
    if not raw or b"\0" in raw:
        raise ImageIOError(errno.EINVAL, "a stash needs a name without NUL", name)
    return raw


def _free(stash: Any) -> None:
    lib.fdstash_cleanup(stash)


class FDStash:
    """A container of named descriptors, closed together.

    Any thread may call anything at any time. `close` (or leaving the context)
    closes every descriptor still held; a later call raises `ClosedError`.
    """

    def __init__(self) -> None:
        storage = ffi.new("FDStash *")
        lib.fdstash_init(storage)
        # A backstop for a stash that nobody closed.
        self._stash = ffi.gc(storage, _free)
        self._closed = False

    def _open(self) -> Any:
        if self._closed:
            raise ClosedError(_CLOSED)
        return self._stash

    def give(self, name: str, fd: int) -> None:
        """Hand `fd` over under `name`; what the name held is closed and replaced.

        If it raises (`ImageIOError`: EBADF, EMFILE, ENOMEM), the caller still
        owns `fd`. A number below 3 is moved up.
        """
        check(lib.fdstash_give(self._open(), _encode(name), fd), name, "give a descriptor")

    def add(self, name: str, fd: int) -> None:
        """As `give`, but beside what the name already holds."""
        check(lib.fdstash_add(self._open(), _encode(name), fd), name, "add a descriptor")

    def give_all(self, descriptors: Sequence[tuple[str, int]]) -> None:
        """As `give` for several (name, fd) at once, all or none."""
        names = [ffi.new("char[]", _encode(name)) for name, _ in descriptors]
        fds = ffi.new("int[]", [fd for _, fd in descriptors])
        check(
            lib.fdstash_give_all(self._open(), ffi.new("char *[]", names), fds, len(names)),
            None,
            "give descriptors",
        )

    def take(self, name: str) -> int:
        """Hand the oldest descriptor of `name` to the caller, who then owns it.

        Raises `ImageIOError` (a `FileNotFoundError`) when there is none.
        """
        return check(lib.fdstash_take(self._open(), _encode(name)), name, "not in the stash")

    def dup(self, name: str) -> int:
        """A duplicate of the oldest descriptor of `name`, owned by the caller."""
        return check(lib.fdstash_dup(self._open(), _encode(name)), name, "dup from the stash")

    def dup_all(self, name: str) -> list[int]:
        """Duplicates of all descriptors of `name`, oldest first; empty when there are none."""
        raw = _encode(name)
        capacity = 4
        while True:
            fds = ffi.new("int[]", capacity)
            held = check(
                lib.fdstash_dup_all(self._open(), raw, fds, capacity), name, "dup from the stash"
            )
            if held <= capacity:
                return [fds[i] for i in range(held)]
            capacity = held

    def names(self) -> list[str]:
        """The names held, in the order in which they came."""
        size = ffi.new("size_t *")
        block = lib.fdstash_names(self._open(), size)
        if block == ffi.NULL:
            raise ImageIOError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        try:
            raw: bytes = ffi.unpack(block, size[0])
        finally:
            lib.fdstash_free(block)
        return [os.fsdecode(name) for name in raw.split(b"\0")[:-1]]

    def find_owned(self, name: str, flags: int) -> int:
        """For the opener: a dup that fits `flags`, owned by an image, or ``-errno``.

        ``-ENOENT``: no such name; ``-EACCES``: no description has that access mode
        and O_DIRECT.
        """
        found: int = lib.fdstash_find_owned(self._open(), _encode(name), flags)
        return found

    def send(self, sock: socket.socket) -> None:
        """Send every descriptor, with its name, over a Unix socket (SCM_RIGHTS).

        The stash keeps what it holds; the other side gets duplicates that share
        status flags and offset. See `fdstash.passing` for what goes over the wire.
        """
        from fdstash import passing  # noqa: PLC0415 - sockets are not needed to open an image

        passing.send(self, sock)

    @classmethod
    def receive(cls, sock: socket.socket) -> Self:
        """What the other side's `send` sent. All or nothing: on any error nothing is kept.

        Raises `ImageIOError`: EMSGSIZE when the kernel cut descriptors off
        (MSG_CTRUNC), ECONNRESET when the other side went away half-way, EPROTO
        for anything that `send` would not write.
        """
        from fdstash import passing  # noqa: PLC0415 - as above

        return passing.receive(cls(), sock)

    @classmethod
    def from_listen_fds(cls) -> Self:
        """What a service manager passed in: LISTEN_FDS and LISTEN_FDNAMES.

        Takes ownership of the descriptors and removes the variables, so that they
        are not used twice (sd_listen_fds(3)). Empty when nothing was passed to
        this very process. Several descriptors of one name are kept beside each
        other.
        """
        from fdstash import passing  # noqa: PLC0415 - as above

        return passing.from_listen_fds(cls())

    def close(self) -> None:
        """Close every descriptor held. Closing twice is nothing."""
        self._closed = True
        lib.fdstash_cleanup(self._stash)

    def __len__(self) -> int:
        """How many names the stash holds."""
        count: int = lib.fdstash_count(self._open())
        return count

    def __contains__(self, name: object) -> bool:
        """Whether `name` holds a descriptor."""
        if not isinstance(name, str) or not name or "\0" in name:
            return False
        return bool(lib.fdstash_dup_all(self._open(), _encode(name), ffi.NULL, 0) > 0)

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<FDStash closed>" if self._closed else f"<FDStash {self.names()!r}>"
