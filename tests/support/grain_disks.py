"""Sparse VMDKs that no tool here makes: headers, tables and grains put together by hand.

Grains are given by their number; tables are there only where they are needed, and grains
lie in an order of their own.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from fdstash.formats.vmdk import cowd, sesparse
from fdstash.formats.vmdk.cowd import CowdHeader
from fdstash.formats.vmdk.sesparse import Area, SeSparseHeader, VolatileHeader
from fdstash.formats.vmdk.sparse_header import Flag, SparseHeader
from tests.support.disks import SECTOR

__all__ = [
    "UNMAPPED",
    "ZEROED",
    "describe",
    "write_cowd_extent",
    "write_hosted_extent",
    "write_sesparse_extent",
]

#: Content of a grain of an seSparse extent: unmapped by the guest, or zeros.
UNMAPPED = b"unmapped"
ZEROED = b"zeroed"


def describe(path: Path, lines: Iterable[str], create_type: str, *, head: str = "") -> Path:
    """Write a descriptor of these extent lines; `head`: further lines before them."""
    extents = "\n".join(lines)
    path.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\n"
        f"{head or 'parentCID=ffffffff'}\n"
        f'createType="{create_type}"\n\n# Extent description\n{extents}\n\n'
        '# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = "4"\nddb.adapterType = "ide"\n'
    )
    return path


def write_hosted_extent(
    path: Path,
    size: int,
    grains: Mapping[int, bytes] | None = None,
    *,
    grain: int = 8,
    gtes: int = 16,
    redundant: bool = True,
    zeroed_grain: bool = False,
) -> str:
    """A KDMV extent of `size` bytes in grains of `grain` sectors; its extent line."""
    flags = Flag.NEWLINES | (Flag.REDUNDANT if redundant else 0)
    flags |= Flag.ZEROED_GRAIN if zeroed_grain else 0
    plan = SparseHeader(size // SECTOR, flags=flags, grain=grain, gtes_per_gt=gtes)
    copies = 2 if redundant else 1
    overhead = 1 + copies * plan.gd_sectors
    header = SparseHeader(
        size // SECTOR,
        version=2 if zeroed_grain else 1,
        flags=flags,
        grain=grain,
        gtes_per_gt=gtes,
        rgd_offset=1 if redundant else 0,
        gd_offset=1 + (copies - 1) * plan.gd_sectors,
        overhead=overhead,
    )
    tables = _Tables(overhead, gtes, header.gt_bytes // SECTOR)
    directories = tables.fill(grains or {}, grain, header.gt_count, copies)
    data = header.encode() + b"".join(
        _words(each).ljust(plan.gd_sectors * SECTOR, b"\0") for each in directories
    )
    path.write_bytes(data + tables.data)
    return f'RW {size // SECTOR} SPARSE "{path.name}"'


def write_cowd_extent(
    path: Path, size: int, grains: Mapping[int, bytes] | None = None, *, grain: int = 1
) -> str:
    """A COWD extent of `size` bytes in grains of `grain` sectors; its extent line."""
    entries = CowdHeader(size // SECTOR, grain).gt_count
    plan = CowdHeader(size // SECTOR, grain, gd_entries=entries)
    tables = _Tables(plan.gd_end, cowd.GTES_PER_GT, cowd.GT_BYTES // SECTOR)
    (directory,) = tables.fill(grains or {}, grain, entries, 1)
    header = CowdHeader(size // SECTOR, grain, gd_entries=entries, free_sector=tables.end)
    data = header.encode() + _words(directory).ljust((plan.gd_end - 4) * SECTOR, b"\0")
    path.write_bytes(data + tables.data)
    return f'RW {size // SECTOR} VMFSSPARSE "{path.name}"'


class _Tables:
    """What follows the directories of an extent: tables and grains, from sector `start` on."""

    def __init__(self, start: int, gtes: int, sectors: int) -> None:
        self._start = start
        self._gtes = gtes
        self._sectors = sectors  # of a table
        self.data = b""

    @property
    def end(self) -> int:
        return self._start + len(self.data) // SECTOR

    def fill(
        self, grains: Mapping[int, bytes], grain: int, count: int, copies: int
    ) -> list[list[int]]:
        """Put them there; returns the directories of `count` entries, all for equal tables."""
        places = {}
        numbers = list(grains)
        random.Random(len(numbers)).shuffle(numbers)
        for number in numbers:
            places[number] = self.end
            self.data += grains[number].ljust(grain * SECTOR, b"\0")
        directories = [[0] * count for _ in range(copies)]
        for page in sorted({number // self._gtes for number in numbers}):
            first = page * self._gtes
            table = [places.get(number, 0) for number in range(first, first + self._gtes)]
            for directory in directories:
                directory[page] = self.end
                self.data += _words(table).ljust(self._sectors * SECTOR, b"\0")
        return directories


def write_sesparse_extent(path: Path, size: int, grains: Mapping[int, bytes]) -> str:
    """An seSparse extent of `size` bytes, in grains of 4 KiB; its extent line."""
    sectors, gtes = size // SECTOR, sesparse.GTES_PER_GT
    count = -(-sectors // (sesparse.GRAIN * gtes))
    stored = [n for n, data in grains.items() if data not in (UNMAPPED, ZEROED)]
    random.Random(len(stored)).shuffle(stored)
    pages = sorted({number // gtes for number in grains}, reverse=True)
    gd_sectors = -(-count * 8 // SECTOR)
    tables = Area(32 + gd_sectors, 64 * max(1, len(pages)))
    header = SeSparseHeader(
        sectors,
        volatile_header=Area(1, 1),
        journal_header=Area(2, 2),
        journal=Area(4, 4),
        grain_directory=Area(8, gd_sectors),
        grain_tables=tables,
        free_bitmap=Area(tables.end, 1),
        back_map=Area(tables.end + 1, 1),
        grains=Area(tables.end + 8, 8 * max(1, len(stored))),
    )
    directory = [0] * count
    data = bytearray((header.grains.offset + 8 * len(stored)) * SECTOR)
    for at, page in enumerate(pages):
        directory[page] = 1 << 60 | at
        table = [0] * gtes
        for number in range(page * gtes, (page + 1) * gtes):
            table[number % gtes] = _sesparse_entry(grains.get(number), number, stored)
        _put(data, tables.offset + 64 * at, struct.pack(f"<{gtes}Q", *table))
    for at, number in enumerate(stored):
        _put(data, header.grains.offset + 8 * at, grains[number])
    _put(data, 0, header.encode())
    _put(data, 1, VolatileHeader().encode())
    _put(data, 8, struct.pack(f"<{count}Q", *directory))
    path.write_bytes(data)
    return f'RW {sectors} SESPARSE "{path.name}"'


def _sesparse_entry(content: bytes | None, number: int, stored: list[int]) -> int:
    if content is None:
        return 0
    if content in (UNMAPPED, ZEROED):
        return (1 if content == UNMAPPED else 2) << 60
    place = stored.index(number)
    return 3 << 60 | (place & 0xFFF) << 48 | place >> 12


def _put(data: bytearray, sector: int, part: bytes) -> None:
    data[sector * SECTOR : sector * SECTOR + len(part)] = part


def _words(entries: Iterable[int]) -> bytes:
    entries = list(entries)
    return struct.pack(f"<{len(entries)}I", *entries)
