"""The places where a host file may lie, by what O_DIRECT asks for there.

ext4, XFS and tmpfs, and loop devices with sectors of 512 and of 4096 bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

import fdstash
from fdstash import Image
from fdstash.hostfile import HostFile
from fdstash.opening import dup_owned, open_path
from tests.support.hosts import FileSystem, Hosts

__all__ = [
    "DIRECT_PLACES",
    "FILES",
    "PLACES",
    "Ground",
    "Place",
    "at",
    "directness",
    "dup_of",
    "image_at",
]

MIB = 1 << 20


class Place(NamedTuple):
    """Where a file lies; of a device, the device itself is the file."""

    name: str
    sector: int  #: what O_DIRECT asks for there, bytes
    is_device: bool


PLACES = [
    Place("ext4", 512, is_device=False),
    Place("ext4-4096", 4096, is_device=False),
    Place("xfs", 512, is_device=False),
    Place("xfs-4096", 4096, is_device=False),
    Place("tmpfs", 1, is_device=False),
    Place("loop", 512, is_device=True),
    Place("loop-4096", 4096, is_device=True),
]
DIRECT_PLACES = [place for place in PLACES if place.name != "tmpfs"]
FILES = [place for place in PLACES if not place.is_device]


class Ground:
    """A file of `size` bytes at some place, made anew for each test."""

    def __init__(self, hosts: Hosts, place: Place, tmpfs: Path) -> None:
        self.place = place
        self._hosts = hosts
        self._device: str | None = None
        self.file_system: FileSystem | None = None
        kind, _, sector = place.name.partition("-")
        if place.is_device:
            self._device = hosts.loop(MIB, place.sector)
            self.path = Path(self._device)
        elif kind == "tmpfs":
            self.path = tmpfs / "file"
        else:
            size = (256 if kind == "ext4" else 512) * MIB
            self.file_system = hosts.file_system(kind, size, int(sector or 512))
            self.path = hosts.folder(kind, size, int(sector or 512)) / "file"
        self.size = MIB if place.is_device else 0

    def fill(self, data: bytes) -> None:
        """The file holds exactly this; a device this and zeros."""
        if self.place.is_device:
            fd = os.open(self.path, os.O_WRONLY)
            os.pwrite(fd, data.ljust(self.size, b"\0"), 0)
            os.fsync(fd)
            os.close(fd)
        else:
            self.path.write_bytes(data)
            self.size = len(data)

    def open(self, *, direct: bool, writable: bool = True) -> HostFile:
        flags = os.O_RDWR if writable else os.O_RDONLY
        fd = open_path(str(self.path), flags | (os.O_DIRECT if direct else 0))
        return HostFile(fd, "file", path=str(self.path), writable=writable)

    def content(self) -> bytes:
        """By another description, through the page cache."""
        with open(self.path, "rb") as file:
            return file.read()

    def close(self) -> None:
        if self._device is not None:
            self._hosts.drop_loop(self._device)


def at(places: list[Place]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ground", places, indirect=True, ids=lambda place: place.name)


directness = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])


def dup_of(path: Path, flags: int) -> int:
    """An owned descriptor, without the look that `open_path` takes."""
    fd = os.open(path, flags)
    owned = dup_owned(fd, "file")
    os.close(fd)
    return owned


def image_at(ground: Ground, cache: str = "writeback", mode: str = "r+") -> Image:
    return fdstash.open(ground.path, mode, format="raw", cache=cache)
