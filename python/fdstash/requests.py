"""What the arguments of a request become for the core, and what its refusals mean."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

from fdstash._ffi import ffi
from fdstash.errors import ImageIOError

__all__ = ["REASONS", "check_range", "gather", "integers", "refuse_range", "unpin"]

#: By errno: what a request was refused for.
REASONS = {
    errno.ENOSPC: "past the end of the image, or the host is full",
    errno.EBADF: "the image is open read-only",
    errno.EROFS: "this extent must not be written",
    errno.EACCES: "this extent may not be accessed",
    errno.EDEADLK: "a reopen holds writes, and its own prepare callable must not write",
}


def check_range(n: int, offset: int) -> None:
    """Raises `ImageIOError` (EINVAL) for what no file can have."""
    if n < 0 or offset < 0 or n + offset >= 1 << 63:
        refuse_range(n, offset)


def refuse_range(n: int, offset: int) -> NoReturn:
    """Raises that."""
    raise ImageIOError(errno.EINVAL, f"no such range: {n} bytes at {offset}")


def gather(pinned: ExitStack, buffers: Sequence[Any], *, writable: bool) -> Any:
    """The core's vector of `buffers`, pinned for as long as `pinned` is open."""
    iov = ffi.new("fdstash_iovec[]", len(buffers))
    for entry, buffer in zip(iov, buffers, strict=True):
        view = ffi.from_buffer("char[]", buffer, require_writable=writable)
        pinned.callback(ffi.release, view)
        entry.base = view
        entry.length = len(view)
    return iov


def integers(offsets: Any) -> Any:
    """The core's view of a buffer of 64-bit integers. Raises `TypeError`."""
    with memoryview(offsets) as view:
        if view.itemsize != 8 or view.format.lstrip("@=<") not in ("q", "l", "Q", "L"):
            raise TypeError(f"offsets are 64-bit integers, not items of format {view.format!r}")
    return ffi.from_buffer("int64_t[]", offsets)


def unpin(view: Any) -> None:
    """Let go of a buffer at once, whoever still knows the view."""
    if view:
        ffi.release(view)
