"""Memory that O_DIRECT can use without a bounce."""

from __future__ import annotations

import mmap
from typing import Self

__all__ = ["AlignedBuffer"]


class AlignedBuffer(mmap.mmap):
    """`size` zeroed bytes at an address that is a multiple of `alignment`.

    A writable buffer for `preadv` and `pwritev` of any cache mode: memory pages
    of its own, private to the process. `alignment` is a power of two of at most
    a page, which no known device exceeds. Not safe to resize or close while a
    request uses it (both raise `BufferError` then). Any thread.
    """

    alignment: int  #: bytes

    def __new__(cls, size: int, alignment: int = mmap.PAGESIZE) -> Self:
        """Map the memory. Raises `ValueError` for a size or alignment that cannot be."""
        if size <= 0:
            raise ValueError(f"size must be positive, not {size}")
        if alignment <= 0 or alignment & (alignment - 1) or alignment > mmap.PAGESIZE:
            raise ValueError(
                f"alignment must be a power of two of at most {mmap.PAGESIZE}, not {alignment}"
            )
        # Private: a forked child must not write into a buffer of its parent.
        self = super().__new__(cls, -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.alignment = alignment
        return self
