"""Files that are told from each other by inode and by bytes, whatever paths they have by now.

Two folders have files of the same names: disks, and flat VMDKs, each in a descriptor file and two
files of data beside it. Every file has a descriptor of its own here, so that no inode number is
used twice and what was replaced can still be looked at.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.support.disks import SECTOR, ExtentSpec, descriptor_text

__all__ = ["DESCRIPTORS", "DISKS", "EXTENTS", "NAMES", "SIZE", "FilePool", "PooledFile"]

#: Bytes of a file of data.
SIZE = 8 * SECTOR
DISKS = ("one.raw", "two.raw")
DESCRIPTORS = ("disk.vmdk", "copy.vmdk")
EXTENTS = ("e0.bin", "e1.bin")
NAMES = (*DISKS, *DESCRIPTORS, *EXTENTS)
_TEXT = descriptor_text(
    [ExtentSpec("RW", SIZE // SECTOR, name=name) for name in EXTENTS], "monolithicFlat"
).encode()
_CID = re.compile(rb"(?m)^CID=[0-9a-f]{8}$")


class PooledFile:
    """A file and the bytes that it must have. `born`: the path that it was made at."""

    def __init__(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.born = path
        self.content = bytearray(content)
        self.is_descriptor = content == _TEXT
        self.fd = os.open(path, os.O_RDONLY)
        status = os.fstat(self.fd)
        self.identity = status.st_dev, status.st_ino

    def __repr__(self) -> str:
        return f"<{self.born.parent.name}/{self.born.name} {self.identity[1]}>"

    def take_content_id(self) -> None:
        """A descriptor file gets another content ID when the image is first written to."""
        found = self.found()
        if _CID.sub(b"", found) == _CID.sub(b"", bytes(self.content)):
            self.content[:] = found

    def found(self) -> bytes:
        """What it has on disk."""
        return os.pread(self.fd, len(self.content) + 1, 0)


class FilePool:
    """All files beneath `root`, and which of them each path names."""

    def __init__(self, root: Path) -> None:
        self.folders = [root / "a", root / "b"]
        self.files: list[PooledFile] = []
        self._at: dict[str, PooledFile] = {}
        self._aside: dict[str, PooledFile] = {}
        for folder in self.folders:
            folder.mkdir()
            for name in NAMES:
                self._at[str(folder / name)] = self._make(folder / name)

    def _make(self, path: Path) -> PooledFile:
        data = b"file %05d\n" % len(self.files) * (SIZE // 8)
        made = PooledFile(path, _TEXT if path.name.endswith(".vmdk") else data[:SIZE])
        self.files.append(made)
        return made

    def at(self, path: str) -> PooledFile | None:
        """What a path names now."""
        return self._at.get(path)

    def of(self, identity: tuple[int, int]) -> PooledFile:
        """The file of that device and inode."""
        return next(file for file in self.files if file.identity == identity)

    def replace(self, path: str) -> None:
        """Another file takes a path; the one that had it has none then."""
        fresh = self._make(Path(path).with_name(f"fresh-{os.path.basename(path)}"))
        os.replace(fresh.born, path)
        self._at[path] = fresh

    def exchange(self, one: str, other: str) -> None:
        """Each of two paths names what the other one did."""
        if one not in self._at or other not in self._at:
            return
        os.rename(one, f"{one}.moving")
        os.rename(other, one)
        os.rename(f"{one}.moving", other)
        self._at[one], self._at[other] = self._at[other], self._at[one]

    def hide(self, path: str) -> None:
        """A path names nothing from now on, or again what it did before."""
        if path in self._aside:
            os.replace(f"{path}.aside", path)
            self._at[path] = self._aside.pop(path)
        elif path in self._at:
            os.rename(path, f"{path}.aside")
            self._aside[path] = self._at.pop(path)

    def wrong(self) -> list[PooledFile]:
        """Those that have other bytes than they must have."""
        return [file for file in self.files if file.found() != file.content]

    def close(self) -> None:
        for file in self.files:
            os.close(file.fd)
