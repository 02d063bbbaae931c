"""Sparse VMDKs as their files are, read without the driver: guest bytes, and what is wrong.

Headers and directories are decoded by the modules that decode nothing else; tables and
grains are looked up here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from fdstash.formats.vmdk import cowd, grain_directory, sparse_header

__all__ = ["SparseFile", "guest_bytes", "parent_of", "sparse_trouble"]

_SECTOR = 512
_EXTENT = re.compile(r'^RW (\d+) (?:SPARSE|VMFSSPARSE) "([^"]+)"', re.MULTILINE)
_HINT = re.compile(r'^parentFileNameHint="([^"]+)"', re.MULTILINE)


class SparseFile:
    """One extent. `entries`: of all its grain tables, one list for each directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = data = path.read_bytes()
        #: Ranges of sectors (start, end) that no grain may lie in.
        self.metadata: list[tuple[int, int]] = []
        if data.startswith(cowd.MAGIC):
            self._read_cowd()
        else:
            self._read_hosted()

    def _read_cowd(self) -> None:
        header = cowd.parse(self._data[: cowd.HEADER_BYTES], str(self.path))
        self.sectors, self.grain, self.first_sector = header.capacity, header.grain, header.gd_end
        self.has_zeros = False
        self.free_sector: int | None = header.free_sector
        self._per_table = cowd.GTES_PER_GT
        self.metadata.append((0, header.gd_end))
        self.entries = [self._tables(header.gd_offset, header.gt_count)]

    def _read_hosted(self) -> None:
        header = sparse_header.parse(self._data[:_SECTOR], str(self.path))
        self.sectors, self.grain, self.first_sector = header.capacity, header.grain, header.overhead
        self.has_zeros = header.has_zeroed_grains
        self.free_sector = None
        self._per_table = header.gtes_per_gt
        self.embedded = header.descriptor_offset, header.descriptor_size
        self.metadata.append((0, header.overhead))
        self.entries = [
            self._tables(place, header.gt_count) for place in (header.gd_offset, header.rgd_offset)
        ]

    def _tables(self, directory: int, count: int) -> list[int]:
        entries: list[int] = []
        for sector in grain_directory.decode(self._at(directory, 4 * count)):
            if sector:
                table = grain_directory.decode(self._at(sector, 4 * self._per_table))
                self.metadata.append((sector, sector + 4 * self._per_table // _SECTOR))
            entries += table if sector else [0] * self._per_table
        return entries

    def _at(self, sector: int, n: int) -> bytes:
        return self._data[sector * _SECTOR : sector * _SECTOR + n]

    def descriptor(self) -> str:
        """The embedded one."""
        offset, size = self.embedded
        return self._at(offset, size * _SECTOR).rstrip(b"\0").decode()

    def put_over(self, disk: bytearray, start: int) -> None:
        """Its grains and zeros, over what the images below have."""
        for number in range(-(-self.sectors // self.grain)):
            at = number * self.grain
            n = min(self.grain, self.sectors - at) * _SECTOR
            sector, place = self.entries[0][number], start + at * _SECTOR
            if sector == 1 and self.has_zeros:
                disk[place : place + n] = bytes(n)
            elif sector:
                disk[place : place + n] = self._at(sector, n)

    def trouble(self) -> Iterator[str]:
        """Copies of tables that differ, and grains where something else is."""
        if any(copy != self.entries[0] for copy in self.entries):
            yield f"{self.path.name}: the redundant tables are not equal to the others"
        zeros = (0, 1) if self.has_zeros else (0,)
        grains = [
            (sector, sector + self.grain) for sector in self.entries[0] if sector not in zeros
        ]
        end = len(self._data) // _SECTOR
        used = sorted([*grains, *self.metadata[1:]])
        if used and used[0][0] < self.metadata[0][1] and self.free_sector is not None:
            yield f"{self.path.name}: {used[0]} is in the header or the directory"
        if grains and min(grains)[0] < self.first_sector:
            yield f"{self.path.name}: the grain {min(grains)} is in the metadata"
        if self.free_sector is not None:  # else tables are in the overhead, which is one piece
            for before, after in pairwise(used):
                if after[0] < before[1]:
                    yield f"{self.path.name}: {before} and {after} lie over each other"
            if used and max(used)[1] > self.free_sector:
                yield f"{self.path.name}: {max(used)} is not before sector {self.free_sector}"
        elif len(set(grains)) != len(grains):
            yield f"{self.path.name}: two entries refer to one grain"
        if any(last > end for _, last in used):
            yield f"{self.path.name}: {max(used)} is beyond the end, {end}"


def _descriptor(path: Path) -> str:
    data = path.read_bytes()
    return SparseFile(path).descriptor() if data.startswith(b"KDMV") else data.decode()


def parent_of(path: Path) -> Path | None:
    """By its hint, relative to the folder of the image."""
    found = _HINT.search(_descriptor(path))
    return path.parent / found[1] if found else None


def _extents(path: Path) -> Iterator[tuple[int, SparseFile]]:
    start = 0
    for sectors, name in _EXTENT.findall(_descriptor(path)):
        yield start, SparseFile(path.parent / name)
        start += int(sectors) * _SECTOR


def guest_bytes(path: Path) -> bytes:
    """What a guest must read of the image, and where it has nothing, of its parents."""
    extents = list(_extents(path))
    parent = parent_of(path)
    size = sum(extent.sectors for _, extent in extents) * _SECTOR
    disk = bytearray(guest_bytes(parent) if parent else b"").ljust(size, b"\0")[:size]
    for start, extent in extents:
        extent.put_over(disk, start)
    return bytes(disk)


def sparse_trouble(path: Path) -> Iterator[str]:
    """What is wrong with the tables of the image; its parents are left out."""
    for _, extent in _extents(path):
        yield from extent.trouble()
