"""Requests of a queue that were not collected yet, as a model knows them, and their memory."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Arena", "Pending", "pages", "refusal"]


@dataclass
class Pending:
    """A request that was taken up and not collected."""

    kind: str
    offset: int = 0
    n: int = 0
    memory: Any = None
    data: bytes = b""  #: what the range holds once it is done; of a trim, what it may hold
    mode: str | None = None  #: of the image when it was submitted; None: it was not
    refusable: bool = False  #: the mode has changed since, so that either may be said

    @property
    def changes(self) -> bool:
        """Whether it is to change bytes of the image."""
        return self.kind in ("write", "zero", "trim")

    def overlaps(self, offset: int, n: int) -> bool:
        return self.n > 0 and self.offset < offset + n and offset < self.offset + self.n


class Arena:
    """Memory to be pinned; one buffer of it is lent at a time.

    Never as a memoryview: one that is garbage while cffi has it pinned ends CPython.
    """

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size)

    def lend(self, data: bytes) -> Any:
        self.memory[: len(data)] = data
        return (ctypes.c_ubyte * len(data)).from_buffer(self.memory)

    @staticmethod
    def holds(buffer: Any) -> bool:
        return isinstance(buffer, ctypes.Array)


def pages(data: bytes) -> mmap.mmap:
    """Whole pages of memory, which O_DIRECT takes as they are."""
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


def refusal(call: Callable[[], object]) -> int | None:
    """The errno of a call that must fail; nothing of the error is kept."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None
