"""raw: the file's bytes are the guest's bytes.

With the options `offset` and `size` (bytes) the image is a window of the file,
say one partition of a disk; it can then neither move nor grow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Self

from fdstash.errors import FormatError, OptionError
from fdstash.formats.base import (
    MAX_OFFSET,
    FileChild,
    Format,
    Kind,
    Opener,
    ReadAt,
    Segment,
    unsupported,
)
from fdstash.formats.options import PREALLOCATION, CreateOption, check_names, check_size
from fdstash.formats.staging import Staging

__all__ = ["CREATE_OPTIONS", "Raw", "create"]


class Raw(Format):
    """A raw image, whole or a window."""

    name = "raw"
    option_names = ("offset", "size")

    def __init__(self, file: FileChild, offset: int, size: int, *, window: bool) -> None:
        self.file = file
        self.size = size
        self._offset = offset
        self._window = window

    @classmethod
    def recognise(cls, head: bytes, tail: bytes, size: int, filename: str) -> int:
        """Anything can be raw: 1, so that every other format comes first."""
        return 1

    @classmethod
    def open(
        cls,
        file: FileChild,
        opener: Opener,
        *,
        writable: bool,
        options: Mapping[str, object],
    ) -> Self:
        """Checks the window against the file; without one the image is the whole file."""
        check_names(options, cls.option_names, "raw")
        start = check_size(options, "offset")
        length = check_size(options, "size")
        held = file.size
        offset = start or 0
        if offset > held:
            raise FormatError(
                f"the window starts at byte {offset}, but the file has only {held}",
                file=file.name,
                field="offset",
            )
        if length is not None and length > held - offset:
            raise FormatError(
                f"the window ends at byte {offset + length}, but the file has only {held}",
                file=file.name,
                field="size",
            )
        window = start is not None or length is not None
        return cls(file, offset, held - offset if length is None else length, window=window)

    def segments(self) -> Sequence[Segment]:
        """One run of data; none for an empty image."""
        if self.size == 0:
            return ()
        return (Segment(0, self.size, Kind.DATA, self.file.index, self._offset),)

    def revalidate(self, read: ReadAt) -> None:
        """The file must still be as long as the image, as seen by its last byte."""
        end = self._offset + self.size
        if self.size and not read(self.file, 1, end - 1):
            raise FormatError(
                f"the file is shorter than the {end} bytes that the image needs",
                file=self.file.name,
                field="size",
            )

    def resize(self, size: int) -> None:
        """Truncates or extends the file. New bytes read as zeros.

        Raises `ImageIOError` with ENOTSUP for a window and for a block device,
        and what the system says otherwise (EFBIG, ENOSPC, EBADF).
        """
        if not 0 <= size <= MAX_OFFSET:
            raise OptionError(f"an image cannot have {size} bytes", option="size")
        if self._window:
            raise unsupported(self.file.name, "a window of a file cannot be resized")
        if self.file.fixed_size:
            raise unsupported(self.file.name, "a device cannot be resized")
        self.file.truncate(size)
        self.size = size

    def info(self) -> dict[str, object]:
        """The window, where there is one."""
        return {"offset": self._offset, "size": self.size} if self._window else {}


CREATE_OPTIONS: Mapping[str, CreateOption] = {"preallocation": PREALLOCATION}


def create(
    path: str | os.PathLike[str],
    size: int,
    *,
    preallocation: str = "off",
) -> None:
    """Makes a raw image of `size` bytes that reads as zeros; replaces a regular file.

    Raises `OptionError`, `ImageIOError`, and `LockError` when the file to be
    replaced is in use as an image.
    """
    with Staging() as staging:
        staging.add(path, size, preallocation)
        staging.commit()
