"""The C loop that a reopen is measured against: `reopen_loop.c`, built on demand."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.compiler import compile_c

__all__ = ["DESCRIPTOR", "LAST_BYTE", "NO_HEADER", "PATH", "PROC", "SETFL", "Plan", "ReopenLoop"]

SETFL, PROC, PATH = range(3)
NO_HEADER, LAST_BYTE, DESCRIPTOR = range(3)

#: Its lock bytes lie where those of an image never are.
_LOCK_BASE = 1000


class Plan(ctypes.Structure):
    """`struct reopen_loop_plan`."""

    _fields_ = (
        ("route", ctypes.c_uint32),
        ("flags", ctypes.c_int32),
        ("widen", ctypes.c_uint32),
        ("narrow", ctypes.c_uint32),
        ("header", ctypes.c_uint32),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    here = Path(__file__).parent
    sources = [here / "reopen_loop.c", here / "reopen_loop.h"]
    flags = ["-D_GNU_SOURCE", "-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared"]
    library = ctypes.CDLL(str(compile_c(sources, "reopen_loop.so", flags)))
    library.reopen_loop_open.argtypes = [
        ctypes.POINTER(ctypes.c_char_p),
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.POINTER(ctypes.c_void_p),
    ]
    library.reopen_loop_toggle.argtypes = [ctypes.c_void_p, ctypes.POINTER(Plan)]
    library.reopen_loop_toggle.restype = ctypes.c_int64
    library.reopen_loop_close.argtypes = [ctypes.c_void_p]
    library.reopen_loop_close.restype = None
    return library


class ReopenLoop:
    """The files at `paths`, opened read-write under numbers of its own."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._library = _library()
        self._paths = (ctypes.c_char_p * len(paths))(*map(os.fsencode, paths))
        self._handle = ctypes.c_void_p()
        rc = self._library.reopen_loop_open(
            self._paths, len(paths), _LOCK_BASE, ctypes.byref(self._handle)
        )
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def toggle(self, plan: Plan) -> int:
        """One toggle; the nanoseconds that it took, by its own clock."""
        taken: int = self._library.reopen_loop_toggle(self._handle, plan)
        if taken < 0:
            raise OSError(-taken, os.strerror(-taken))
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._library.reopen_loop_close(self._handle)
