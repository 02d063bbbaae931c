"""The image that is reopened: one made for the purpose, or one that somebody has."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import fdstash
from fdstash.bench.cells import Cell, packed, sampled
from fdstash.errors import Error, OptionError

__all__ = ["Given", "Made", "Subject", "default_folder"]

_MADE_BYTES = 32 << 20
_SMALLEST_EXTENT = 64 << 10
_SAMPLED_BYTES = 64 << 20  # of a given image, kept in memory
_MOST_CELLS = 16384


class Subject(Protocol):
    """An image that can be opened again and again."""

    path: str
    writable: bool
    made: bool  #: it is ours, to be moved and broken

    def open(self, path: str, mode: str, cache: str) -> fdstash.Image:
        """Open it, under that one of its paths."""

    def cells(
        self, image: fdstash.Image, size: int | None, block_bytes: int, seed: int, *, odd_ones: bool
    ) -> list[Cell]:
        """What the load reads and writes, of the first `size` bytes."""

    def other_path(self, path: str) -> str:
        """Another path to the same files."""


class Made:
    """A VMDK of many extents in a folder of its own, which is removed by `close`.

    Its descriptor has two names, hard links, so that it can be reopened by another
    path. Its files can be read by their owner alone.
    """

    made = True
    writable = True

    def __init__(self, folder: str, extents: int, size: int | None = None) -> None:
        """`size`: bytes, about; of each extent at least 64 KiB."""
        if extents < 1:
            raise OptionError(f"an image has at least one extent, not {extents}", option="extents")
        extent_bytes = max(_SMALLEST_EXTENT, (size or _MADE_BYTES) // extents // 4096 * 4096)
        self.folder = tempfile.mkdtemp(prefix="fdstash-bench-", dir=folder)
        try:
            self._fill_folder(extents, extent_bytes)
        except BaseException:
            self.close()
            raise

    def _fill_folder(self, extents: int, extent_bytes: int) -> None:
        self.path = os.path.join(self.folder, "disk.vmdk")
        self.size = extents * extent_bytes
        fdstash.create(
            self.path,
            "vmdk",
            self.size,
            subformat="twoGbMaxExtentFlat",
            extent_size=extent_bytes,
        )
        files = [os.path.join(self.folder, name) for name in sorted(os.listdir(self.folder))]
        self._extents = [path for path in files if path != self.path]
        # Others may look for the files, and may not read them.
        os.chmod(self.folder, 0o711)  # noqa: S103
        for path in files:
            os.chmod(path, 0o600)
        self._links = [self.path, os.path.join(self.folder, "linked.vmdk")]
        os.link(*self._links)
        self._numbers = itertools.count(1)

    def open(self, path: str, mode: str, cache: str) -> fdstash.Image:
        """Open it."""
        return fdstash.open(path, mode, format="vmdk", cache=cache)

    def cells(
        self,
        image: fdstash.Image,
        size: int | None,
        block_bytes: int,
        seed: int,
        *,
        odd_ones: bool,
    ) -> list[Cell]:
        """The whole image."""
        return packed(image.size, block_bytes, odd_ones=odd_ones)

    def other_path(self, path: str) -> str:
        """The other link."""
        return self._links[path == self._links[0]]

    @contextmanager
    def renamed(self, path: str) -> Iterator[str]:
        """Rename one link, and keep to it unless the block is left by an exception."""
        new = os.path.join(self.folder, f"disk-{next(self._numbers)}.vmdk")
        os.rename(path, new)
        try:
            yield new
        except BaseException:
            os.rename(new, path)
            raise
        self._links[self._links.index(path)] = new

    def extent(self, number: int) -> str:
        """The path of one of the extents, counted from 0 and round again."""
        return self._extents[number % len(self._extents)]

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Given:
    """Somebody's image, of which no byte is changed.

    Read-only unless `writable`; then what is written are the bytes that are there,
    and only where the file already has them. No file is renamed, linked or
    otherwise touched, whenever this ends.
    """

    made = False

    def __init__(self, path: str, *, format: str | None, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._format = format

    def open(self, path: str, mode: str, cache: str) -> fdstash.Image:
        """Open it, with locks, so that nobody else writes to it meanwhile."""
        options: dict[str, Any] = {"mark": False} if self.writable else {}
        return fdstash.open(path, mode, format=self._format, cache=cache, **options)

    def cells(
        self, image: fdstash.Image, size: int | None, block_bytes: int, seed: int, *, odd_ones: bool
    ) -> list[Cell]:
        """A sample; writable is what lies in a file as data, and may be written there."""
        if image.size == 0:
            raise OptionError("the image is empty", option="image")
        if size is not None and not 0 < size <= image.size:
            raise OptionError(f"the image has {image.size} bytes, not {size}", option="size")
        most = max(1, min(_MOST_CELLS, _SAMPLED_BYTES // block_bytes))
        files = {file.name for file in image.files if file.mode == "r+"} if self.writable else set()
        cells = []
        for cell in sampled(size or image.size, block_bytes, most, seed, odd_ones=odd_ones):
            extents = list(image.extents(cell.length, cell.offset))
            if any(extent.kind == "denied" for extent in extents):
                continue
            writable = all(
                each.kind == "data" and each.file in files and each.depth == 0 for each in extents
            )
            cells.append(cell._replace(writable=writable))
        if not cells:
            raise OptionError("the image has nothing that can be read", option="image")
        return cells

    def other_path(self, path: str) -> str:
        """The same place in another spelling."""
        if path != self.path:
            return self.path
        folder, name = os.path.split(self.path)
        return os.path.join(folder or ".", ".", name)


def default_folder() -> str:
    """Where to make an image: memory, if there O_DIRECT works as on a disk; else the disk."""
    for folder in ("/dev/shm", tempfile.gettempdir()):  # noqa: S108 - in a folder of its own
        if os.access(folder, os.W_OK) and _has_room(folder) and _bears_direct(folder):
            return folder
    return tempfile.gettempdir()


def _has_room(folder: str) -> bool:
    """Containers often have little memory there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize >= 2 * _MADE_BYTES


def _bears_direct(folder: str) -> bool:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="fdstash-") as file:
            file.truncate(1 << 16)
            with fdstash.open(file.name, "r", format="raw", cache="none"):
                return True
    except (Error, OSError):
        return False
