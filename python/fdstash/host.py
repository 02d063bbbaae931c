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


#: Those of IORING_SETUP_ that a queue asks for and an older kernel may not know, by bit.
_SETUP_FLAGS = {
    1 << 7: "SUBMIT_ALL",
    1 << 8: "COOP_TASKRUN",
    1 << 9: "TASKRUN_FLAG",
    1 << 12: "SINGLE_ISSUER",
    1 << 13: "DEFER_TASKRUN",
}


class Uring(NamedTuple):
    """What the kernel gives of io_uring."""

    state: str  #: ``usable``, ``refused`` or ``not built``
    error: int  #: errno, where it is refused
    flags: tuple[str, ...]  #: of setup, that a queue has got
    bound_flags: tuple[str, ...]  #: the same for a queue that stays with one thread


def uring() -> Uring:
    """Sets up rings as a queue does, and lets them go."""
    error = ffi.new("int *")
    found = ffi.new("uint32_t[2]")
    state = {
        lib.FDSTASH_URING_USABLE: "usable",
        lib.FDSTASH_URING_REFUSED: "refused",
        lib.FDSTASH_URING_NOT_BUILT: "not built",
    }[lib.fdstash_uring_probe(error, found, found + 1)]
    return Uring(state, int(error[0]), _names(found[0]), _names(found[1]))


def _names(flags: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _SETUP_FLAGS.items() if flags & bit)


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
