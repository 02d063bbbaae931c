"""An image as a binary file."""

from __future__ import annotations

import io
import os
from typing import Protocol

__all__ = ["ImageFile", "PositionedIO"]


class PositionedIO(Protocol):
    """What a file object needs of an image."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def mode(self) -> str:
        """``r`` or ``r+``."""

    @property
    def closed(self) -> bool:
        """Whether requests are refused."""

    def preadv(self, buffers: list[object], offset: int) -> int:
        """As `os.preadv`."""

    def pwrite(self, data: object, offset: int) -> int:
        """As `os.pwrite`."""

    def flush(self) -> None:
        """Make completed writes durable."""


class ImageFile(io.RawIOBase):
    """Seek, read, readinto and write on an image; `truncate` is not offered.

    Closing it leaves the image open. Each has a position of its own, for one
    thread at a time. A write at the end is short, as on a full disk, and one
    beyond it raises ENOSPC.
    """

    def __init__(self, image: PositionedIO) -> None:
        super().__init__()
        self._image = image
        self._position = 0

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed file")

    def readable(self) -> bool:
        """Always."""
        self._check()
        return True

    def writable(self) -> bool:
        """Whether the image is open for writing now."""
        self._check()
        return self._image.mode == "r+"

    def seekable(self) -> bool:
        """Always."""
        self._check()
        return True

    def tell(self) -> int:
        """The position, bytes."""
        self._check()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position, also beyond the end, and return it."""
        self._check()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._image.size}
        if whence not in base:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        position = base[whence] + offset
        if position < 0:
            raise ValueError(f"negative position {position}")
        self._position = position
        return position

    def readinto(self, buffer: object, /) -> int:
        """Read up to the buffer's length; 0 at the end."""
        self._check()
        count = self._image.preadv([buffer], self._position)
        self._position += count
        return count

    def write(self, data: object, /) -> int:
        """Write at the position; returns how many bytes, fewer only at the end."""
        self._check()
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        left = self._image.size - self._position
        if 0 < left < len(view):
            view = view[:left]
        count = self._image.pwrite(view, self._position)
        self._position += count
        return count

    def flush(self) -> None:
        """Make the image's completed writes durable, if it can be written."""
        if not self.closed and not self._image.closed and self._image.mode == "r+":
            self._image.flush()
