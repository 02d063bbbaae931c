"""System calls that fail from now on, in this process and its children: a filter of the kernel.

For a child process alone: nothing takes it back.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

__all__ = ["IO_URING_ENTER", "IO_URING_REGISTER", "IO_URING_SETUP", "refuse"]

IO_URING_SETUP = 425
IO_URING_ENTER = 426
IO_URING_REGISTER = 427

_NO_NEW_PRIVILEGES = 38
_SECCOMP = 317  # of x86-64; with a flag that prctl has not
_SET_FILTER, _ALL_THREADS = 1, 1
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse(calls: Iterable[int], error: int) -> None:
    """Every thread's `calls` fail with the errno `error`, and do nothing."""
    assert os.uname().machine == "x86_64"
    code = struct.pack("<HBBI", _LOAD, 0, 0, 0)
    for call in calls:
        code += struct.pack("<HBBI", _EQUAL, 0, 1, call)
        code += struct.pack("<HBBI", _RETURN, 0, 0, _FAIL | error)
    code += struct.pack("<HBBI", _RETURN, 0, 0, _ALLOW)
    program = _Program(len(code) // 8, ctypes.cast(ctypes.c_char_p(code), ctypes.c_char_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0
        or libc.syscall(_SECCOMP, _SET_FILTER, _ALL_THREADS, ctypes.byref(program)) != 0
    ):
        raise OSError(ctypes.get_errno(), "no filter")
