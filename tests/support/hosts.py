"""Fixtures for real file systems and devices, all over files in a tmpfs: fast and steady.

`hosts` owns them for the session. What is asked for twice with the same words is mounted once,
and every test gets a folder of its own on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fuse import HeldFs
from tests.support.mounts import Workplace, attach_loop, detach_loop, mount, run, unmount

__all__ = ["FailingLoop", "FileSystem", "Hosts"]

MIB = 1 << 20

_MAKE = {
    "ext4": (
        "e2fsprogs",
        "mkfs.ext4 -q -F -b 4096 -m 0 -E lazy_itable_init=0,lazy_journal_init=0".split(),
    ),
    "xfs": ("xfsprogs", "mkfs.xfs -q -f".split()),
}


def _make_file_system(kind: str, device: str) -> None:
    package, command = _MAKE[kind]
    run(*command, device, package=package)


@dataclass(frozen=True)
class FileSystem:
    """A mounted file system and the loop device beneath it."""

    folder: Path
    device: str
    backing: Path


class FailingLoop:
    """A loop device, or an ext4 on it, whose write-back can be made to fail.

    Its backing file lies on a tmpfs of its own. `poison` takes the space away from beneath a
    range, and fills the tmpfs: buffered writes there still succeed, and fsync fails. The bytes of
    a poisoned range are lost and read as zeros where they are not cached.
    """

    def __init__(self, place: Path, size: int, file_system: str | None) -> None:
        self._tmpfs = place
        mount("fdstash-failing", place, "tmpfs", f"rw,size={size + MIB}")
        self.backing = place / "backing"
        with open(self.backing, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        self.device = attach_loop(self.backing)
        self.folder: Path | None = None
        self.size = size
        if file_system is not None:
            _make_file_system(file_system, self.device)
            self._allocate()
            self.folder = place.with_name(f"{place.name}-mounted")
            mount(self.device, self.folder, file_system)

    def _allocate(self) -> None:
        # mkfs discarded the device, and the journal must not fail for want of space.
        with open(self.backing, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, self.size)

    def poison(
        self, file: str | os.PathLike[str] | None = None, offset: int = 0, length: int | None = None
    ) -> None:
        """Writes to this range of the device, or to these blocks of a file on it, now fail later.

        For a file these are the blocks that it has by now. Ranges are whole blocks of 4096 bytes.
        """
        ranges = [(offset, self.size - offset if length is None else length)]
        if file is not None:
            ranges = _extents(file, offset, (1 << 62) if length is None else length)
        for start, count in ranges:
            run("fallocate", "--punch-hole", "-o", start, "-l", count, self.backing)
        self._fill()

    def _fill(self) -> None:
        chunk = bytes(MIB)
        with open(self._tmpfs / "filler", "ab", buffering=0) as filler:
            while chunk:
                try:
                    filler.write(chunk)
                except OSError:
                    chunk = chunk[: len(chunk) // 2]

    def repair(self) -> None:
        """There is space again: what is written from now on reaches the device."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._tmpfs / "filler")

    def close(self) -> None:
        self.repair()
        if self.folder is not None:
            unmount(self.folder)
        detach_loop(self.device)
        unmount(self._tmpfs)


def _extents(file: str | os.PathLike[str], offset: int, length: int) -> list[tuple[int, int]]:
    """Where a range of the file lies on its device (FS_IOC_FIEMAP, the file synced first)."""
    header, extent, room = struct.Struct("QQIIII"), struct.Struct("QQQ16xI12x"), 256
    request = bytearray(header.size + room * extent.size)
    header.pack_into(request, 0, offset, length, 1, 0, room, 0)
    fd = os.open(file, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0xC020660B, request)
    finally:
        os.close(fd)
    found = []
    for index in range(header.unpack_from(request)[3]):
        logical, physical, count, _ = extent.unpack_from(request, header.size + index * extent.size)
        start, end = max(logical, offset), min(logical + count, offset + length)
        if start < end:
            found.append((physical + start - logical, end - start))
    return found


class Hosts:
    """Makes devices and file systems, and takes them all away again."""

    def __init__(self) -> None:
        self._workplace = Workplace()
        self._shared: dict[tuple[str, int, int], FileSystem] = {}
        self._backing: dict[str, Path] = {}

    def backing_file(self, size: int) -> Path:
        """A sparse file in the tmpfs."""
        path = self._workplace.fresh("backing")
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def loop(self, size: int, sector_size: int = 512) -> str:
        """A loop device of its own; its path."""
        backing = self.backing_file(size)
        device = attach_loop(backing, sector_size)
        self._backing[device] = backing
        return device

    def file_system(self, kind: str, size: int, sector_size: int = 512) -> FileSystem:
        """A mounted file system, one for each combination."""
        key = kind, size, sector_size
        if key not in self._shared:
            backing = self.backing_file(size)
            device = attach_loop(backing, sector_size)
            _make_file_system(kind, device)
            folder = self._workplace.fresh(kind)
            mount(device, folder, kind)
            self._shared[key] = FileSystem(folder, device, backing)
        return self._shared[key]

    def folder(self, kind: str, size: int, sector_size: int = 512) -> Path:
        """A fresh folder on such a file system."""
        shared = self.file_system(kind, size, sector_size)
        path = shared.folder / self._workplace.fresh("folder").name
        path.mkdir()
        return path

    def failing_loop(self, size: int, file_system: str | None) -> FailingLoop:
        return FailingLoop(self._workplace.fresh("failing"), size, file_system)

    def held_fuse(self) -> HeldFs:
        backing = self._workplace.fresh("fuse-backing")
        backing.mkdir()
        return HeldFs(backing, self._workplace.fresh("fuse"))

    def drop_loop(self, device: str) -> None:
        """Detach a device of `loop`, as soon as nobody uses it, and remove its backing file."""
        detach_loop(device)
        self._backing.pop(device).unlink()

    def close(self) -> None:
        self._workplace.close()


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    owner = Hosts()
    yield owner
    owner.close()


@pytest.fixture
def ext4_mount(hosts: Hosts) -> Iterator[Callable[..., Path]]:
    """`ext4_mount(size=256 MiB, sector_size=512)`: an empty folder on a real ext4."""
    yield from _folders(hosts, "ext4", 256 * MIB)


@pytest.fixture
def xfs_mount(hosts: Hosts) -> Iterator[Callable[..., Path]]:
    """`xfs_mount(size=512 MiB, sector_size=512)`: an empty folder on a real XFS."""
    yield from _folders(hosts, "xfs", 512 * MIB)


def _folders(hosts: Hosts, kind: str, size: int) -> Iterator[Callable[..., Path]]:
    made: list[Path] = []

    def make(size: int = size, sector_size: int = 512) -> Path:
        made.append(hosts.folder(kind, size, sector_size))
        return made[-1]

    yield make
    for path in made:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def loop_device(hosts: Hosts) -> Iterator[Callable[..., str]]:
    """`loop_device(size=64 MiB, sector_size=512)`: the path of a loop device of zeros."""
    made: list[str] = []

    def make(size: int = 64 * MIB, sector_size: int = 512) -> str:
        made.append(hosts.loop(size, sector_size))
        return made[-1]

    yield make
    for device in made:
        hosts.drop_loop(device)


@pytest.fixture
def failing_loop(hosts: Hosts) -> Iterator[Callable[..., FailingLoop]]:
    """`failing_loop(size=32 MiB, file_system="ext4")`, or None for the bare device."""
    made: list[FailingLoop] = []

    def make(size: int = 32 * MIB, file_system: str | None = "ext4") -> FailingLoop:
        made.append(hosts.failing_loop(size, file_system))
        return made[-1]

    yield make
    for failing in made:
        failing.close()


@pytest.fixture
def stopped_fuse(hosts: Hosts) -> Iterator[HeldFs]:
    """A FUSE file system that answers until it is told not to."""
    server = hosts.held_fuse()
    yield server
    server.close()
