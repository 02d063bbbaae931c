"""Reads of an image, whichever of a chain it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from fdstash import needs
from fdstash._ffi import ffi, lib, raise_for
from fdstash.datapath import DataPath
from fdstash.needs import NEEDS
from fdstash.requests import REASONS, check_range, gather

__all__ = ["Reader"]

_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


class Reader:
    """What `Image` and `Backing` have in common. Any thread."""

    def __init__(self, data: DataPath, name: str) -> None:
        self._data = data
        self._core = data.handle
        self._name = name

    @property
    def name(self) -> str:
        """What the image is called: its path, unless `open` was told otherwise."""
        return self._name

    def pread(self, n: int, offset: int) -> bytes:
        """Up to `n` bytes at `offset`; short only at the end of the image."""
        check_range(n, offset)
        left = max(0, self._data.size - offset)
        n = min(n, left)
        buffer = _uncleared("char[]", n or 1)
        got = lib.fdstash_image_pread(self._core, buffer, n, offset)
        if got == NEEDS:
            got = needs.read(self._data, ffi.new("fdstash_iovec[]", [(buffer, n)]), offset)
        if got < 0:
            self._fail(got)
        data: bytes = ffi.buffer(buffer, got)[:]
        return data

    def preadv(self, buffers: Sequence[Any], offset: int) -> int:
        """Fill writable buffers in turn; returns the bytes read, short only at the end."""
        check_range(0, offset)
        if len(buffers) == 1:
            with ffi.from_buffer("char[]", buffers[0], require_writable=True) as view:
                got: int = lib.fdstash_image_pread(self._core, view, len(view), offset)
                if got == NEEDS:
                    iov = ffi.new("fdstash_iovec[]", [(view, len(view))])
                    got = needs.read(self._data, iov, offset)
        else:
            with ExitStack() as pinned:
                iov = gather(pinned, buffers, writable=True)
                got = lib.fdstash_image_preadv(self._core, iov, len(iov), offset)
                if got == NEEDS:
                    got = needs.read(self._data, iov, offset)
        if got < 0:
            self._fail(got)
        return got

    def _fail(self, rc: int) -> None:
        raise_for(rc, self._name, REASONS.get(-rc))
