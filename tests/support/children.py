"""A file and an opener for format drivers, on plain `os` calls."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from fdstash.errors import RefusedError, os_error
from fdstash.formats.base import Format

F = TypeVar("F", bound=Format)


class PathChild:
    """A host file, with a descriptor of its own."""

    fixed_size = False

    def __init__(self, path: str, name: str, index: int, *, writable: bool) -> None:
        self.path = path
        self.name = name
        self.index = index
        self.writable = writable
        self.reads: list[tuple[int, int]] = []
        self.fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def pread(self, n: int, offset: int, /) -> bytes:
        self.reads.append((n, offset))
        return os.pread(self.fd, n, offset)

    def pwrite(self, data: bytes, offset: int, /) -> int:
        return os.pwrite(self.fd, data, offset)

    def flush(self) -> None:
        os.fsync(self.fd)

    def truncate(self, size: int, /) -> None:
        os.ftruncate(self.fd, size)


class MemoryChild:
    """A file that is bytes in memory; `size` may claim more."""

    fixed_size = False
    writable = True

    def __init__(self, data: bytes, name: str = "disk.vmdk", index: int = 0, size: int = -1):
        self.data = bytearray(data)
        self.name = name
        self.index = index
        self.size = len(data) if size < 0 else size
        self.reads: list[tuple[int, int]] = []

    def pread(self, n: int, offset: int, /) -> bytes:
        self.reads.append((n, offset))
        return bytes(self.data[offset : offset + n])

    def pwrite(self, data: bytes, offset: int, /) -> int:
        self.data[offset : offset + len(data)] = data
        return len(data)

    def flush(self) -> None:
        pass

    def truncate(self, size: int, /) -> None:
        self.data = self.data[:size].ljust(size, b"\0")
        self.size = size


class MemoryOpener:
    """Gives a file of `size` bytes for every name, and remembers what was asked for."""

    def __init__(self, size: int = 1 << 62, same: Callable[[str], str] = str) -> None:
        self.asked: list[tuple[str, bool]] = []
        self._size = size
        self._same = same
        self._children: dict[str, MemoryChild] = {}

    def open(self, text: str, /, *, writable: bool) -> MemoryChild:
        self.asked.append((text, writable))
        key = self._same(text)
        if key not in self._children:
            index = len(self._children) + 1
            self._children[key] = MemoryChild(b"", text, index, self._size)
        return self._children[key]


class FolderOpener:
    """Files beneath the folder of `main`; the same inode is the same child."""

    def __init__(self, main: str | os.PathLike[str], *, writable: bool = False) -> None:
        self.path = os.fspath(main)
        self.writable = writable
        self.asked: list[tuple[str, bool]] = []
        self.children: list[PathChild] = []
        self.file = self._child(self.path, writable=writable)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self.children:
            os.close(child.fd)

    def open(self, text: str, /, *, writable: bool) -> PathChild:
        self.asked.append((text, writable))
        if text.startswith("/") or ".." in text.split("/"):
            raise RefusedError(errno.EACCES, "not beneath the folder", text)
        path = os.path.join(os.path.dirname(self.path), text)
        return self._child(path, writable=writable and self.writable)

    def open_image(self, driver: type[F], **options: object) -> F:
        return driver.open(self.file, self, writable=self.writable, options=options)

    def _child(self, path: str, *, writable: bool) -> PathChild:
        try:
            status = os.stat(path)
            for child in self.children:
                if os.path.samestat(status, os.fstat(child.fd)):
                    return child
            child = PathChild(path, path, len(self.children), writable=writable)
        except OSError as error:
            raise os_error(error.errno or errno.EIO, path) from error
        self.children.append(child)
        return child


def guest_bytes(image: Format) -> bytes:
    """What the guest reads from the whole image, by its segments."""
    files = {file.index: file for file in image.files}
    parts = []
    at = 0
    for segment in image.segments():
        assert segment.start == at
        assert segment.length > 0
        at += segment.length
        if segment.kind == 0:
            parts.append(files[segment.file].pread(segment.length, segment.file_offset))
        else:
            parts.append(bytes(segment.length))
    assert at == image.size
    return b"".join(parts)
