"""A disk as the binary file that an emulator would have opened with ``open(path, "r+b")``.

PDP-11 emulators in Python, and others of old machines, seek to a sector, read or
write any number of words and look at no count that comes back. `Image.as_file`
counts as `io.RawIOBase` does; here a write is whole or raises.
"""

from __future__ import annotations

import errno
import os

from fdstash.errors import ImageIOError
from fdstash.file_object import ImageFile
from fdstash.image import Image

__all__ = ["DiskFile"]


class DiskFile(ImageFile):
    """Seek, read, write and flush on an image, without a buffer of its own.

    What is written is in the image when `write` returns, and durable when `flush`
    or `close` does. A disk does not grow: a write that would leave it raises
    `ImageIOError` (ENOSPC) and writes nothing; a read is short only at the end.
    Closing it leaves the image open. One thread at a time; a reopen of the image
    may run at any time. The interface is that of `io.RawIOBase`, which
    `io.BufferedRandom` takes where an emulator wants one.
    """

    def __init__(self, image: Image) -> None:
        super().__init__(image)
        self._name = image.name

    @property
    def name(self) -> str:
        """The image's name, as a file object's `name`."""
        return self._name

    def write(self, data: object, /) -> int:
        """Write all of `data`, any buffer, at the position; how many bytes that was."""
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        left = self._image.size - self._position
        if size > left:
            raise ImageIOError(
                errno.ENOSPC,
                f"{os.strerror(errno.ENOSPC)}: {size} bytes at {self._position},"
                f" {max(left, 0)} to the end of the disk",
                self._name,
            )
        return super().write(data)
