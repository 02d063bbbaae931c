"""The only importer of the extensions, and the only translation of its errors.

The C core returns 0 or a count on success and ``-errno`` on failure. Every call
releases the GIL.
"""

from __future__ import annotations

import errno
import os
from typing import Any, NoReturn

from fdstash import _calls
from fdstash._calls import Reads, Writes
from fdstash._native import ffi, lib
from fdstash.errors import ClosedError, ImageIOError, LockError, RefusedError

__all__ = ["Reads", "Writes", "address", "check", "ffi", "lib", "raise_for"]

_Raised = type[ImageIOError] | type[LockError] | type[RefusedError]


def address(pointer: Any) -> int:
    """Of what the core's pointer leads to."""
    return int(ffi.cast("uintptr_t", pointer))


_calls.bind(
    address(ffi.addressof(lib, "fdstash_image_size")),
    address(ffi.addressof(lib, "fdstash_image_preadv")),
    address(ffi.addressof(lib, "fdstash_image_pwritev")),
)


def raise_for(
    rc: int,
    filename: str | None = None,
    message: str | None = None,
    cls: _Raised = ImageIOError,
) -> NoReturn:
    """Raise what the negative errno `rc` means."""
    if rc == -errno.ESHUTDOWN:
        raise ClosedError("the image is closed, or was opened by the process this one forked from")
    if rc == -errno.ENOMEM and message is None:
        message = "no memory"
    text = os.strerror(-rc)
    raise cls(-rc, f"{message}: {text}" if message else text, filename)


def check(
    rc: int,
    filename: str | None = None,
    message: str | None = None,
    cls: _Raised = ImageIOError,
) -> int:
    """Return `rc` unless it is a negative errno; then raise `cls` for it."""
    if rc < 0:
        raise_for(rc, filename, message, cls)
    return rc
