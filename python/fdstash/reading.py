"""Reads of an image, whichever of a chain it is."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NoReturn, SupportsIndex

from fdstash import needs
from fdstash._ffi import Reads, address, ffi, raise_for
from fdstash.datapath import DataPath
from fdstash.requests import REASONS, gather, refuse_range

__all__ = ["Reader"]

_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


class Reader(Reads):
    """What `Image` and `Backing` have in common. Any thread.

    `marked`: the core's byte that says whether the first write has been announced; None where
    there is no write.
    """

    def __init__(self, data: DataPath, name: str, marked: Any = None) -> None:
        byte = ffi.NULL if marked is None else marked
        super().__init__((data.handle, marked), address(data.handle), address(byte))
        self._data = data
        self._core = data.handle
        self._name = name

    @property
    def name(self) -> str:
        """What the image is called: its path, unless `open` was told otherwise."""
        return self._name

    # What `Reads` leaves to Python.

    def _pread_needs(self, n: int, offset: int) -> bytes:
        buffer = _uncleared("char[]", n)
        got = needs.read(self._data, ffi.new("fdstash_iovec[]", [(buffer, n)]), offset)
        if got < 0:
            self._fail(got)
        data: bytes = ffi.buffer(buffer, got)[:]
        return data

    def _preadv_needs(self, buffers: Sequence[Any], offset: int) -> int:
        with ExitStack() as pinned:
            got = needs.read(self._data, gather(pinned, buffers, writable=True), offset)
        if got < 0:
            self._fail(got)
        return got

    def _refuse_range(self, n: SupportsIndex, offset: SupportsIndex) -> NoReturn:
        refuse_range(operator.index(n), operator.index(offset))

    def _fail(self, rc: int) -> NoReturn:
        raise_for(rc, self._name, REASONS.get(-rc))
