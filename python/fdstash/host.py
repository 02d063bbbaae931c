"""What this kernel, this build and this file system give: facts for whoever asks.

Nothing here decides anything; an open or a reopen finds out for itself.
"""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

from fdstash._ffi import ffi, lib

__all__ = ["DirectAlignment", "direct_alignment", "uring"]

_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_BYTES = 256
_DIO_OFFSET = 152  # of stx_dio_mem_align in struct statx; stx_dio_offset_align follows


class DirectAlignment(NamedTuple):
    """What O_DIRECT asks for, as the kernel says."""

    memory: int  #: bytes
    offset: int  #: bytes, of offsets and lengths


def uring() -> tuple[str, int]:
    """``usable``, ``refused`` (with the errno) or ``not built``; opens a ring and closes it."""
    error = ffi.new("int *")
    found = lib.fdstash_uring_probe(error)
    if found == lib.FDSTASH_URING_USABLE:
        return "usable", 0
    if found == lib.FDSTASH_URING_REFUSED:
        return "refused", int(error[0])
    return "not built", 0


def direct_alignment(fd: int) -> DirectAlignment | None:
    """The alignment that ``statx(STATX_DIOALIGN)`` gives for an open file.

    None where the kernel (before 6.1) or the file system does not tell; it must
    then be found out by trying. A file that does not bear O_DIRECT has zeros.
    """
    statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    if statx is None:
        return None
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer) != 0:
        return None
    (mask,) = struct.unpack_from("=I", buffer)
    if not mask & _STATX_DIOALIGN:
        return None
    return DirectAlignment(*struct.unpack_from("=II", buffer, _DIO_OFFSET))
