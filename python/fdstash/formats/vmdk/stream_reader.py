"""Reads a streamOptimized extent from its first byte to its last, marker by marker.

For streams that cannot be sought in, and for files whose tables are lost: nothing
is looked up. Places are bytes, but for entries of tables, which are sectors.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from fdstash.errors import FormatError, UnsupportedFormatError
from fdstash.formats.vmdk import grain_directory, markers, sparse_header
from fdstash.formats.vmdk.compressed_grain import inflate
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.markers import GRAIN_HEAD_BYTES, MARKER_BYTES, GrainMarker, MarkerType
from fdstash.formats.vmdk.sparse_header import GD_AT_END, HEADER_BYTES, SparseHeader

__all__ = ["Footer", "Grain", "GrainDirectory", "GrainTable", "StreamReader"]


class Grain(NamedTuple):
    """A grain that has data."""

    number: int  #: in the extent; its guest bytes start at ``number * header.grain_bytes``
    data: bytes  #: unpacked; the last grain of a disk may be shorter than the others
    offset: int  #: of its marker in the file, which is what a grain table refers to


class GrainTable(NamedTuple):
    """A grain table. Which one it is only the directory says."""

    entries: array[int]  #: every one is 0, 1 or a sector before the table
    offset: int


class GrainDirectory(NamedTuple):
    """The grain directory."""

    entries: array[int]  #: every one is 0 or the sector of a table that has been read
    offset: int


class Footer(NamedTuple):
    """The footer."""

    header: SparseHeader
    offset: int


class StreamReader:
    """What is in a stream, in the order in which it comes; iterate once.

    `read(n, offset)` gives at most `n` bytes, fewer only at the end; `offset` never
    goes back, so that it may stand on a pipe. `file` is the name for errors. The
    header and the descriptor are read at once, everything else by iterating,
    which ends with the end-of-stream marker.

    A file whose directory comes first, as QEMU writes it, has no such marker:
    there the end of the file is the end, and grains come in any order.

    Raises `FormatError`, and `UnsupportedFormatError` for an extent that is no
    stream. Holds one grain, or one directory (`MAX_GD_BYTES`), at a time, and
    ends after as many markers as the header's capacity has room for.
    """

    header: SparseHeader
    descriptor: bytes  #: as embedded, padding included; empty where there is none

    def __init__(self, read: Callable[[int, int], bytes], file: str) -> None:
        self._read = read
        self._file = file
        self.header = header = sparse_header.parse(read(HEADER_BYTES, 0), file)
        if not (header.compressed and header.has_markers and header.capacity):
            raise UnsupportedFormatError(
                "this extent is no stream: its grains have no markers; open it as an image",
                file=file,
                offset=8,
                field="flags",
            )
        # The length of the stream is not known; what is not there is missed in its turn.
        sparse_header.check(header, file, 2**63 - 1)
        self.descriptor = b""
        self._at = max(header.overhead, 1) * SECTOR
        if header.descriptor_offset:
            offset = header.descriptor_offset * SECTOR
            self.descriptor = self._take(header.descriptor_size * SECTOR, offset, "descriptor")
        self._in_order = header.gd_offset == GD_AT_END
        self._last = -1
        self._grains = 0
        self._tables = array("I")  # the sectors of the tables so far, which ascend
        self._gap = 0

    def __iter__(self) -> Iterator[Grain | GrainTable | GrainDirectory | Footer]:
        seen: set[MarkerType] = set()
        while True:
            at = self._at
            sector = self._read(MARKER_BYTES, at)
            if not self._in_order and not sector:
                return
            if not self._in_order:  # QEMU need not fill the last sector of a file
                sector = sector.ljust(MARKER_BYTES, b"\0")
            marker = markers.parse(sector, self.header, self._file, at)
            if isinstance(marker, GrainMarker):
                yield self._grain(marker, sector)
                continue
            self._at += MARKER_BYTES
            if marker.type == MarkerType.END_OF_STREAM:
                if self._in_order:
                    if MarkerType.FOOTER not in seen:
                        self._fail("the stream ends without a footer; it is damaged", at)
                    return
                self._skip_gap(at)
                continue
            if marker.type in seen or MarkerType.FOOTER in seen:
                self._fail(f"there are two markers of type {marker.type.name}, or late ones", at)
            data = self._take(marker.length * SECTOR, self._at, marker.type.name)
            found = self._metadata(marker.type, data)
            if marker.type != MarkerType.GRAIN_TABLE:
                seen.add(marker.type)
            self._at += len(data)
            yield found

    def _grain(self, marker: GrainMarker, sector: bytes) -> Grain:
        at = self._at
        self._grains += 1
        if self._grains > self.header.grain_count:
            self._fail(f"there are more grains than the {self.header.grain_count} of the disk", at)
        if self._in_order and marker.grain <= self._last:
            self._fail(
                f"grain {marker.grain} comes after grain {self._last}: the stream is not in "
                "order; open the file as an image",
                at,
            )
        self._last = marker.grain
        self._gap = 0
        end = GRAIN_HEAD_BYTES + marker.size
        data = sector[GRAIN_HEAD_BYTES:end]
        if end > MARKER_BYTES:
            data += self._take(end - MARKER_BYTES, at + MARKER_BYTES, "grain data")
        length = self.header.grain_length(marker.grain)
        self._at += markers.sectors(end) * SECTOR
        unpacked = inflate(
            data,
            self.header.grain_bytes,
            length,
            file=self._file,
            offset=at + GRAIN_HEAD_BYTES,
        )
        return Grain(marker.grain, unpacked, at)

    def _metadata(self, kind: MarkerType, data: bytes) -> GrainTable | GrainDirectory | Footer:
        at = self._at
        if kind == MarkerType.FOOTER:
            footer = sparse_header.parse(data, self._file, at)
            markers.check_footer(footer, self.header, self._file, at)
            return Footer(footer, at)
        if kind == MarkerType.GRAIN_TABLE:
            if len(self._tables) == self.header.gt_count:
                self._fail(f"there are more tables than the {self.header.gt_count} of the disk", at)
            entries = grain_directory.decode(data)[: self.header.gtes_per_gt]
            if max(entries) * SECTOR >= at:
                self._fail("an entry of the grain table leads to what has not come yet", at)
            if at // SECTOR >= 1 << 32:
                self._fail("a grain table is beyond the 2 TiB that an entry can refer to", at)
            self._tables.append(at // SECTOR)
            return GrainTable(entries, at)
        entries = grain_directory.decode(data)[: self.header.gt_count]
        for entry in filter(None, entries):
            place = bisect_left(self._tables, entry)
            if place == len(self._tables) or self._tables[place] != entry:
                self._fail(f"sector {entry}, in the grain directory, holds no grain table", at)
        return GrainDirectory(entries, at)

    def _skip_gap(self, at: int) -> None:
        # QEMU writes a grain of zeros before the compressed one is put in its place, and
        # goes on at the next multiple of a grain: what is left between is less than two.
        self._gap += 1
        if self._gap >= 2 * self.header.grain:
            self._fail("there are more sectors of zeros than a gap has; open it as an image", at)

    def _take(self, n: int, offset: int, field: str) -> bytes:
        data = self._read(n, offset)
        if len(data) < n:
            raise FormatError(
                f"the stream ends after {len(data)} of {n} bytes; it was cut off, copy it again",
                file=self._file,
                offset=offset,
                field=field,
            )
        return data

    def _fail(self, message: str, at: int) -> NoReturn:
        raise FormatError(message, file=self._file, offset=at, field="marker")
