"""The extents of an open VMDK: its files, and what each extent line makes of them."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from fdstash.errors import FormatError
from fdstash.formats.base import MAX_OFFSET, FileChild, Kind, Opener, Segment, shown
from fdstash.formats.vmdk import layout
from fdstash.formats.vmdk.cowd_extent import CowdExtent
from fdstash.formats.vmdk.descriptor import ExtentLine
from fdstash.formats.vmdk.descriptor_file import DescriptorFile
from fdstash.formats.vmdk.grain_file import GrainFile
from fdstash.formats.vmdk.hosted_extent import HostedExtent
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.overlaps import Region, overlap
from fdstash.formats.vmdk.sesparse_extent import SeSparseExtent

__all__ = ["Extents"]

_GRAIN_FILES: Mapping[str, type[HostedExtent | CowdExtent | SeSparseExtent]] = {
    "SPARSE": HostedExtent,
    "VMFSSPARSE": CowdExtent,
    "SESPARSE": SeSparseExtent,
}


#: Bytes of memory for the directories of all extents: 64 TiB in any format.
MAX_INDEX_BYTES = 32 << 20


class Extents:
    """What the extent lines of one descriptor name. Opens each file once."""

    def __init__(self, file: FileChild, source: DescriptorFile, opener: Opener) -> None:
        """Raises `FormatError` for extents that cannot be, and what the opener raises."""
        self._file = file
        self._source = source
        if source.embedded:
            self._children = {self.lines[0].name or "": file}
        else:
            self._children = self._open(opener)
        distinct = {child.index: child for child in self._children.values()}
        distinct[file.index] = file
        #: The file that holds the descriptor, and the others as they were opened.
        self.files: Sequence[FileChild] = [distinct[index] for index in sorted(distinct)]
        self._check_overlaps()
        #: By the number of the extent.
        self.grains: dict[int, GrainFile] = self._read_grains()

    @property
    def lines(self) -> Sequence[ExtentLine]:
        """The extent lines."""
        return self._source.parsed.extents

    def child(self, extent: ExtentLine) -> FileChild:
        """The file of an extent that has bytes."""
        return self._children[extent.name or ""]

    def _open(self, opener: Opener) -> dict[str, FileChild]:
        """The files by the text that names them; the RW ones opened first."""
        children: dict[str, FileChild] = {}
        own = posixpath.basename(self._file.name)
        for access in ("RW", "RDONLY"):
            for number, extent in enumerate(self.lines):
                text = extent.name or ""
                if extent.access != access or not layout.has_file(extent) or text in children:
                    continue
                child = None
                if posixpath.normpath(text) != own:
                    writable = access == "RW" and extent.type != "SESPARSE"
                    child = opener.open(text, writable=writable)
                if child is None or child.index == self._file.index:
                    raise self._error(number, "the descriptor names itself as an extent")
                children[text] = child
        return children

    def _read_grains(self) -> dict[int, GrainFile]:
        found: dict[int, GrainFile] = {}
        users: dict[int, int] = {}
        index = 0
        for number, extent in enumerate(self.lines):
            if not layout.is_sparse(extent):
                continue
            child = self.child(extent)
            if child.index in users:
                raise self._error(
                    number,
                    f"extent {users[child.index]} is in {shown(child.name)} already, "
                    "and a sparse file is one extent",
                )
            users[child.index] = number
            grains = _GRAIN_FILES[extent.type](child, _plain)
            if grains.capacity != extent.sectors * SECTOR:
                raise self._error(
                    number,
                    f"{extent.sectors} sectors, but {shown(child.name, 200)} says that it has "
                    f"{grains.capacity // SECTOR}",
                    field="sectors",
                )
            found[number] = grains
            index += grains.index_bytes
            if index > MAX_INDEX_BYTES:
                raise self._error(
                    number,
                    "the directories of the extents up to here would take more than "
                    f"{MAX_INDEX_BYTES} bytes of memory",
                    field="sectors",
                )
        return found

    def plain_segments(self) -> Sequence[Segment]:
        """One for each extent that is not sparse."""
        segments = []
        for start, extent in self._placed():
            length = extent.sectors * SECTOR
            readonly = extent.access == "RDONLY"
            if extent.access == "NOACCESS":
                segments.append(Segment(start, length, Kind.DENIED))
            elif extent.type == "ZERO":
                segments.append(Segment(start, length, Kind.ZERO, readonly=readonly))
            elif not layout.is_sparse(extent):
                place = (extent.offset or 0) * SECTOR
                index = self.child(extent).index
                segments.append(Segment(start, length, Kind.DATA, index, place, readonly=readonly))
        return segments

    def starts(self) -> dict[int, int]:
        """Where on the disk each sparse extent starts, bytes; by number, ascending."""
        return {
            number: start
            for number, (start, extent) in enumerate(self._placed())
            if layout.is_sparse(extent)
        }

    def _placed(self) -> list[tuple[int, ExtentLine]]:
        placed = []
        start = 0
        for extent in self.lines:
            placed.append((start, extent))
            start += extent.sectors * SECTOR
        return placed

    def check_lengths(self) -> None:
        """Every flat extent must lie within its file."""
        sizes: dict[int, int] = {}
        for number, extent in enumerate(self.lines):
            if not layout.holds_data(extent):
                continue
            child = self.child(extent)
            if child.index not in sizes:
                sizes[child.index] = child.size
            end = ((extent.offset or 0) + extent.sectors) * SECTOR
            if end > sizes[child.index]:
                raise self._error(
                    number,
                    f"{shown(child.name, 200)} has {sizes[child.index]} bytes, "
                    f"the extent needs {end}",
                    field="sectors",
                )

    def _check_overlaps(self) -> None:
        found = overlap(
            Region(
                self.child(extent).index,
                (extent.offset or 0) if layout.holds_data(extent) else 0,
                (extent.offset or 0) + extent.sectors
                if layout.holds_data(extent)
                else MAX_OFFSET // SECTOR,
                extent.access == "RW",
                number,
            )
            for number, extent in enumerate(self.lines)
            if layout.has_file(extent)
        )
        if found is not None:
            first, second = found
            name = self.lines[second.number].name or ""
            raise self._error(
                second.number,
                f"it overlaps extent {first.number} in {shown(name)}, and one of them is RW",
                field="offset",
            )

    def _error(self, number: int, message: str, field: str = "file name") -> FormatError:
        return FormatError(
            f"extent {number}: {message}",
            file=self._file.name,
            offset=self._source.line(number),
            field=field,
        )


def _plain(file: FileChild, n: int, offset: int) -> bytes:
    return file.pread(n, offset)
