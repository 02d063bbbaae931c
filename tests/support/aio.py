"""Asynchronous requests straight to the kernel, past every lock and gate of the product.

Linux AIO by number: what a queue of requests does, without one. See io_submit(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

__all__ = ["Aio"]

_NUMBERS = {
    "x86_64": {"setup": 206, "destroy": 207, "getevents": 208, "submit": 209},
    "aarch64": {"setup": 0, "destroy": 1, "submit": 2, "getevents": 4},
}
_PWRITE = 1


class _Request(ctypes.Structure):
    _fields_: Sequence[tuple[str, type]] = [  # type: ignore[assignment]
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    ]


class _Event(ctypes.Structure):
    _fields_: Sequence[tuple[str, type]] = [  # type: ignore[assignment]
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    ]


class Aio:
    """One context: writes of `length` bytes, all of them the same."""

    def __init__(self, depth: int, length: int, fill: bytes) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._numbers = _NUMBERS[platform.machine()]
        self._context = ctypes.c_ulong(0)
        self._call("setup", ctypes.c_long(depth), ctypes.byref(self._context))
        self._depth = depth
        self._length = length
        self._memory = mmap.mmap(-1, length)
        self._memory[:] = fill * (length // len(fill))

    def _call(self, name: str, *arguments: object) -> int:
        done: int = self._libc.syscall(ctypes.c_long(self._numbers[name]), *arguments)
        if done < 0:
            raise OSError(ctypes.get_errno(), f"io_{name}: {os.strerror(ctypes.get_errno())}")
        return done

    def write(self, fd: int, offsets: Iterable[int]) -> list[int]:
        """Write at all these offsets at once; what each returned, once all have."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        requests = [
            _Request(0, 0, 0, _PWRITE, 0, fd, address, self._length, offset, 0, 0, 0)
            for offset in offsets
        ]
        pointers = (ctypes.POINTER(_Request) * len(requests))(*map(ctypes.pointer, requests))
        submitted = 0
        results: list[int] = []
        events = (_Event * self._depth)()
        while len(results) < len(requests):
            if submitted < len(requests):
                rest = ctypes.byref(pointers, submitted * ctypes.sizeof(ctypes.c_void_p))
                left = ctypes.c_long(len(requests) - submitted)
                submitted += self._call("submit", self._context, left, rest)
            room = ctypes.c_long(self._depth)
            found = self._call("getevents", self._context, ctypes.c_long(1), room, events, None)
            results += [event.result for event in events[:found]]
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call("destroy", self._context)
