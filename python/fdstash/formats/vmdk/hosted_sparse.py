"""A sparse extent of hosted products: grains, and the two copies of their tables.

After VMware's "Virtual Disk Format 5.0", "Hosted Sparse Extents".
"""

from __future__ import annotations

import errno

from fdstash.errors import FormatError, os_error
from fdstash.formats.base import FileChild, Kind, ReadAt
from fdstash.formats.tables import Entry, Part, Rule, Run, Table
from fdstash.formats.vmdk import compressed_grain, grain_directory, markers, sparse_header
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.sparse_header import GD_AT_END, SparseHeader

__all__ = ["SparseExtent"]

_WHOLE = 0xFFFFFFFF
#: What a file grows by at least, bytes: growing is a request of its own.
_STEP = 16 << 20


class SparseExtent:
    """One file of grains. Threads: one at a time."""

    def __init__(self, file: FileChild, read: ReadAt) -> None:
        """Read the header and the directories. Raises `FormatError`."""
        self.file = file
        self.header = _header(file, read)
        self._directories = _directories(file, self.header, read)
        self._end = _end_of_grains(file)
        self._free: list[int] = []

    def entry(self) -> Entry:
        """What an entry of a grain table means."""
        header = self.header
        rules = [Rule(_WHOLE, 0, Kind.HOLE)]
        if header.has_zeroed_grains:
            rules.append(Rule(_WHOLE, 1, Kind.ZERO))
        if header.compressed:
            rules.append(Rule(0, 0, Kind.COMPRESSED))
        return Entry(4, big_endian=False, rules=rules, parts=(Part(_WHOLE),), unit=SECTOR)

    def table(self, start: int, length: int) -> Table:
        """The extent as a table at `start` of the disk, bytes."""
        header = self.header
        return Table(
            start, length, header.grain_bytes, header.gtes_per_gt, self.file.index, self.entry()
        )

    def load(self, page: int) -> bytes | None:
        """The grain table `page`, from the first directory."""
        sector = self._directories[0].entries[page]
        if not sector:
            return None
        n = self.header.gtes_per_gt * 4
        raw = self.file.pread(n, sector * SECTOR)
        if len(raw) != n:
            self._directories[0].fail(sector, "is not in the file")
        return raw

    def decompress(self, offset: int) -> bytes:
        """The grain whose marker, or whose compressed data, is at `offset`."""
        grain = self.header.grain_bytes
        limit = compressed_grain.max_compressed_bytes(grain)
        data = self.file.pread(SECTOR + limit, offset)
        if self.header.has_markers:
            marker = markers.parse(data[:SECTOR], self.header, self.file.name, offset)
            if not isinstance(marker, markers.GrainMarker):
                raise FormatError(
                    "a grain table leads to a marker that is none of a grain",
                    file=self.file.name,
                    offset=offset,
                    field="marker",
                )
            length = self.header.grain_length(marker.grain)
            body = data[12 : 12 + marker.size]
            out = compressed_grain.inflate(
                body, grain, length, file=self.file.name, offset=offset + 12
            )
        else:
            out = compressed_grain.inflate(
                data, grain, grain, file=self.file.name, offset=offset, trailing=True
            )
        return out.ljust(grain, b"\0")

    # -- writing

    def allocate(self, grains: int) -> Run:
        """At the end of the file, which grows by more than is asked for."""
        if self.header.compressed:
            raise os_error(errno.EROFS, self.file.name, "compressed grains are not written")
        if self._free:
            return Run(self._free.pop(), 1, fresh=False)
        n = grains * self.header.grain_bytes
        offset = self._take(n)
        return Run(offset, grains, fresh=True)

    def _take(self, n: int) -> int:
        offset = self._end
        if offset + n > 0xFFFFFFFF * SECTOR:
            raise os_error(errno.EFBIG, self.file.name, "a grain beyond the largest sector number")
        if offset + n > self.file.size:
            self.file.truncate(offset + max(n, self.header.grain_bytes))
        self._end = offset + n
        return offset

    def free(self, offset: int, grains: int) -> None:
        """Grains for the next allocations."""
        step = self.header.grain_bytes
        self._free += [offset + step * each for each in range(grains)]

    def encode(self, kind: int, offset: int) -> int:
        """The entry for a grain."""
        if kind == Kind.DATA:
            return offset // SECTOR
        return 1 if kind == Kind.ZERO else 0

    def store(self, page: int, first: int, raw: bytes) -> None:
        """Write entries into the grain table of each directory, which is made if need be."""
        for directory in reversed(self._directories):  # the one that is read comes last
            sector = directory.entries[page]
            if not sector:
                sector = self._take(self.header.gt_bytes) // SECTOR
                directory.entries[page] = sector
                place = directory.offset + 4 * page
                self.file.pwrite(grain_directory.encode([sector]), place)
            self.file.pwrite(raw, sector * SECTOR + 4 * first)


def _header(file: FileChild, read: ReadAt) -> SparseHeader:
    size = file.size
    header = sparse_header.parse(read(file, SECTOR, 0), file.name)
    if header.gd_offset == GD_AT_END:
        return markers.read_footer(lambda n, at: read(file, n, at), header, file.name, size)
    sparse_header.check(header, file.name, size)
    return header


def _directories(
    file: FileChild, header: SparseHeader, read: ReadAt
) -> list[grain_directory.Directory]:
    places = [("gdOffset", header.gd_offset)]
    if header.has_redundant_directory:
        places.append(("rgdOffset", header.rgd_offset))
    found = []
    for field, sector in places:
        offset = sector * SECTOR
        entries = grain_directory.decode(read(file, header.gd_bytes, offset))
        directory = grain_directory.Directory(file.name, field, offset, entries, header.gt_bytes)
        grain_directory.check(directory, file.size)
        found.append(directory)
    return found


def _end_of_grains(file: FileChild) -> int:
    """Where the next grain goes: aligned to the host's page, so that it may be written direct."""
    return -(-file.size // 4096) * 4096
