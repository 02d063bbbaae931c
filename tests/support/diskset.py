"""The host's side of an image: its files, hard links to them and a copy; their locks; truths."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fdstash
from fdstash import FDStash, Image
from tests.support.disks import SECTOR, ExtentSpec, FlatDisk, make_flat, make_raw
from tests.support.kernel import access_mode, is_direct, open_descriptors
from tests.support.seen import READER_BYTES, WRITER_BYTES
from tests.support.sparse_disks import SparseDisk, make_cowd, make_delta
from tests.support.sparse_files import guest_bytes, sparse_trouble

__all__ = ["FIVE_EXTENTS", "GROWING", "DiskSet", "disagreements", "wrong_bytes"]

#: Layouts that grow when they are written to, over a parent; with tables from the start or none.
GROWING = ("delta", "cowd")
#: Boundaries on no page, and offsets in the files that move pages apart.
FIVE_EXTENTS = tuple(
    ExtentSpec("RW", sectors, name=f"extent-{number}.bin", start=start)
    for number, (sectors, start) in enumerate([(37, 0), (128, 8), (91, 3), (24, 1), (203, 16)])
)
_RAW_SIZE = 256 << 10
_SPARSE_SIZE = 500 << 10
_SPARSE_EXTENT = 192 << 10
#: Sectors, and sectors of a grain.
_COWD_EXTENTS = ((90, 1), (400, 8), (301, 1))
_HOMES = ("own", "link", "copy")
#: A line of /proc/locks or of a descriptor's fdinfo; one that only waits has an arrow.
_LOCK = re.compile(r"^(?:lock:\s*)?\d+: ([^>]*) ([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+)\s")


class DiskSet:
    """The files of an image (raw, vmdk, `GROWING`, or a device), at each of its homes."""

    def __init__(self, place: Path, layout: str, seed: int, device: str | None = None) -> None:
        self.layout = layout
        self.format = "raw" if layout in ("raw", "device") else "vmdk"
        #: Whether it grows as it is written to; see `reset`.
        self.grows = layout in GROWING
        self._disks: dict[str, FlatDisk | SparseDisk | Path] = {}
        if device is None:
            self._make(place.resolve(), seed)
        else:
            self._disks["own"] = Path(device)
        every = {file for home in self._disks for file in self.files(home)}
        self._identities = {file: _identity(file) for file in sorted(every)}
        self._fresh = {file: Path(file).read_bytes() for file in every if self.grows}

    def _make(self, place: Path, seed: int) -> None:
        for home in _HOMES:
            (place / home).mkdir(parents=True)
        own = place / "own"
        disk: FlatDisk | SparseDisk | Path
        if self.layout == "vmdk":
            disk = make_flat(own, FIVE_EXTENTS, seed=seed)
            files = disk.files
        elif self.layout == "delta":
            disk = make_delta(own, _SPARSE_SIZE, _SPARSE_EXTENT, seed=seed)
            files = disk.files
        elif self.layout == "cowd":
            disk = make_cowd(own, _COWD_EXTENTS, seed=seed)
            files = disk.files
        else:
            disk = make_raw(own, _RAW_SIZE, seed=seed)
            files = [disk]
        for home in _HOMES:
            for file in files if home != "own" else []:
                make = os.link if home == "link" else shutil.copyfile
                make(file, place / home / file.name)
            if isinstance(disk, FlatDisk):
                self._disks[home] = disk._replace(path=place / home / disk.path.name)
            elif isinstance(disk, SparseDisk):
                extents = tuple(place / home / file.name for file in disk.extents)
                self._disks[home] = SparseDisk(place / home / disk.path.name, extents)
            else:
                self._disks[home] = place / home / disk.name

    def path(self, home: str = "own") -> str:
        disk = self._disks[home]
        return str(disk if isinstance(disk, Path) else disk.path)

    def parent(self, home: str = "own") -> str | None:
        """The file of the parent, which is only read."""
        disk = self._disks[home]
        return str(disk.parent) if isinstance(disk, SparseDisk) else None

    def files(self, home: str = "own") -> list[str]:
        disk = self._disks[home]
        return [str(file) for file in ([disk] if isinstance(disk, Path) else disk.files)]

    @property
    def parents(self) -> set[str | None]:
        """Those of every home."""
        return {self.parent(home) for home in self._disks}

    def reset(self) -> None:
        """Every file of a layout that grows as it was made, in place. While it is not open."""
        for path, data in self._fresh.items():
            with open(path, "r+b") as file:
                file.truncate()
                file.write(data)

    def identities(self, home: str = "own") -> list[tuple[int, int]]:
        """Device and inode of each."""
        return [self._identities[file] for file in self.files(home)]

    def guest_bytes(self, home: str = "own") -> bytes:
        """What the host's files say that a guest must read."""
        disk = self._disks[home]
        if isinstance(disk, SparseDisk):
            return guest_bytes(disk.path)
        return disk.guest_bytes() if isinstance(disk, FlatDisk) else disk.read_bytes()

    def trouble(self, home: str = "own") -> Iterator[str]:
        """What is wrong with tables on disk."""
        disk = self._disks[home]
        if isinstance(disk, SparseDisk):
            yield from sparse_trouble(disk.path)

    def copy(self, source: str, target: str) -> None:
        """Bring the files of one home up to date with another's, in place."""
        for old, new in zip(self.files(source), self.files(target), strict=True):
            with open(old, "rb") as file, open(new, "r+b") as copy:
                copy.truncate()
                copy.write(file.read())

    def open(self, mode: str, cache: str = "writeback", home: str = "own", **options: Any) -> Image:
        options = {"file": self.path(home), "format": self.format} | options
        return fdstash.open(mode=mode, cache=cache, **options)

    def stash(self) -> FDStash:
        """Each file of its own home in each access mode, with and without O_DIRECT."""
        stash = FDStash()
        for name in self.files():
            for flags in (os.O_RDONLY, os.O_RDWR):
                for direct in (0, os.O_DIRECT):
                    stash.add(name, os.open(name, flags | direct))
        return stash

    def lock_trouble(
        self, mode: str | None, home: str = "own", *, of_the_system: bool = False
    ) -> Iterator[str]:
        """Where the locks are not those of an image open in that mode (None: of none).

        /proc/locks is the list of the whole system: slow, and where others lock and unlock
        meanwhile a reader may miss a line. This process's own locks are all below fdinfo.
        """
        held = {"r": READER_BYTES, "r+": WRITER_BYTES, None: []}[mode]
        live = dict.fromkeys(self.identities(home), held)
        parent = self.parent(home)
        if parent is not None and mode is not None:
            live[self._identities[parent]] = READER_BYTES
        for _ in range(20 if of_the_system else 1):
            locks = self._locked_bytes(["/proc/locks"] if of_the_system else self._descriptions())
            wrong = {
                file: locks[identity]
                for file, identity in self._identities.items()
                if locks[identity] != live.get(identity, [])
            }
            if not wrong:
                return
            time.sleep(0.01 if of_the_system else 0)
        yield f"the locks of an image of mode {mode} are {wrong}"

    def _descriptions(self) -> list[str]:
        """What the kernel shows of this process's descriptors of these files."""
        return [
            f"/proc/self/fdinfo/{fd}"
            for fd, path in open_descriptors().items()
            if path in self._identities
        ]

    def _locked_bytes(self, places: Iterable[str]) -> dict[tuple[int, int], list[int]]:
        """The bytes under shared OFD locks, one entry for each description."""
        found: dict[tuple[int, int], list[int]] = {i: [] for i in self._identities.values()}
        for place in places:
            with open(place, encoding="ascii") as lines:
                for match in filter(None, map(_LOCK.search, lines)):
                    kind, major, minor, inode, first, last = match.groups()
                    identity = os.makedev(int(major, 16), int(minor, 16)), int(inode)
                    if identity in found:
                        assert kind.split()[::2] == ["OFDLCK", "READ"], match[0]
                        found[identity] += range(int(first), int(last) + 1)
        return {identity: sorted(held) for identity, held in found.items()}


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def disagreements(image: Image, disks: DiskSet, home: str = "own") -> Iterator[str]:
    """Where `files`, `mode` and `cache` differ from what the kernel says."""
    files = image.files
    direct = image.cache in ("none", "directsync")
    parent = _identity(disks.parent(home) or os.devnull)
    if sorted((file.device, file.inode) for file in files) != sorted(disks.identities(home)):
        yield f"these are not the files of {home}: {files}"
    for file in files:
        status = os.fstat(file.fd)
        kernel = (access_mode(file.fd), is_direct(file.fd), status.st_dev, status.st_ino)
        if (file.mode, file.direct, file.device, file.inode) != kernel:
            yield f"{file}, but the kernel says {kernel}"
        mode = "r" if (file.device, file.inode) == parent else image.mode
        if file.direct != direct or file.mode != mode:
            yield f"{file} in an image of {image.mode}, cache={image.cache}"


def wrong_bytes(image: Image, model: bytearray, disks: DiskSet, home: str = "own") -> Iterator[str]:
    """Where image and host differ from the model; also writes a little."""
    if disks.grows and image.mode == "r+":
        image.flush()  # entries are on disk only then
    found = image.pread(len(model), 0)
    if found != model:
        yield f"the image serves wrong bytes, from {_differ(found, model)} on"
    host = disks.guest_bytes(home)
    if host != model:
        yield f"the host's files hold wrong bytes, from {_differ(host, model)} on"
    yield from disks.trouble(home)
    for offset, data in ((SECTOR * 8, os.urandom(SECTOR * 8)), (SECTOR * 36 + 7, b"odd" * 700)):
        try:
            image.pwrite(data, offset)
        except OSError as error:
            if image.mode != "r" or error.errno != errno.EBADF:
                yield f"a write to the image of mode {image.mode} fails: {error!r}"
            continue
        model[offset : offset + len(data)] = data
        if image.mode == "r" or image.pread(len(data), offset) != data:
            yield f"a write to the image of mode {image.mode} was taken and not kept"


def _differ(a: bytes | bytearray, b: bytes | bytearray) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
