"""The tables of a sparse extent, read without the driver: what no change may leave wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from fdstash.formats.vmdk import cowd, grain_directory, sparse_header
from fdstash.formats.vmdk.grain_directory import Directory
from tests.support.disks import SECTOR

__all__ = ["assert_tables_are_sound"]


class _Extent(NamedTuple):
    data: bytes
    first: int  #: sector before which there is no grain
    grain: int  #: sectors
    gtes: int
    table_bytes: int
    directories: list[Directory]
    taken: list[tuple[int, int]]  #: sectors of headers and directories
    zeros: int  #: the entries below are none of a grain
    end: int | None  #: where the header says that the file goes on

    def tables(self, directory: Directory) -> list[list[int]]:
        """An entry for each grain; an empty list where there is no table."""
        return [
            list(struct.unpack_from(f"<{self.gtes}I", self.data, sector * SECTOR)) if sector else []
            for sector in directory.entries
        ]

    def used(self) -> Iterator[tuple[int, int]]:
        """The sectors of everything that the file holds."""
        yield from self.taken
        for directory in self.directories:
            for sector in filter(None, directory.entries):
                yield sector, sector + self.table_bytes // SECTOR
        for table in self.tables(self.directories[0]):
            for entry in table:
                if entry >= self.zeros:
                    assert entry >= self.first
                    yield entry, entry + self.grain


def assert_tables_are_sound(path: Path) -> None:
    """No sector has two uses, both directories say the same, and all of it is in the file."""
    data = path.read_bytes()
    extent = _cowd(data) if data.startswith(cowd.MAGIC) else _hosted(data)
    first, *others = (extent.tables(directory) for directory in extent.directories)
    for other in others:
        assert other == first, f"{path.name}: the directories lead to different tables"
    for directory in extent.directories:
        grain_directory.check(directory, len(data))
    used = sorted(extent.used())
    for before, after in pairwise(used):
        assert before[1] <= after[0], f"{path.name}: sector {after[0]} has two uses"
    assert used[-1][1] * SECTOR <= len(data)
    if extent.end is not None:
        assert used[-1][1] <= extent.end <= -(-len(data) // SECTOR)


def _hosted(data: bytes) -> _Extent:
    header = sparse_header.parse(data, "")
    sparse_header.check(header, "", len(data))
    places = {"gdOffset": header.gd_offset}
    if header.has_redundant_directory:
        places["rgdOffset"] = header.rgd_offset
    return _Extent(
        data,
        header.overhead,
        header.grain,
        header.gtes_per_gt,
        header.gt_bytes,
        [
            _directory(data, field, sector, header.gt_count, header.gt_bytes)
            for field, sector in places.items()
        ],
        [(region.start, region.end) for region in sparse_header.regions(header)],
        2 if header.has_zeroed_grains else 1,
        None,
    )


def _cowd(data: bytes) -> _Extent:
    header = cowd.parse(data, "")
    cowd.check(header, "", len(data))
    return _Extent(
        data,
        header.gd_end,
        header.grain,
        cowd.GTES_PER_GT,
        cowd.GT_BYTES,
        [_directory(data, "gdOffset", header.gd_offset, header.gd_entries, cowd.GT_BYTES)],
        [(0, header.gd_end)],
        1,
        header.free_sector,
    )


def _directory(data: bytes, field: str, sector: int, count: int, table_bytes: int) -> Directory:
    at = sector * SECTOR
    entries = grain_directory.decode(data[at : at + 4 * count])
    return Directory("", field, at, entries, table_bytes)
