"""The VMDK driver: a descriptor, flat and sparse extents, and the parent of a delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from fdstash.errors import FormatError
from fdstash.formats.base import FileChild, Format, Opener, ReadAt, Segment
from fdstash.formats.check import CheckReport, Repair
from fdstash.formats.options import check_names
from fdstash.formats.tables import Run, Table, TableFormat
from fdstash.formats.vmdk import layout
from fdstash.formats.vmdk.check import check_extent
from fdstash.formats.vmdk.descriptor import NO_PARENT, ExtentLine
from fdstash.formats.vmdk.descriptor_file import DescriptorFile
from fdstash.formats.vmdk.extents import Extents
from fdstash.formats.vmdk.grain_file import GrainFile
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.magic import descriptor_confidence, sparse_variant

__all__ = ["Vmdk"]


class Vmdk(TableFormat):
    """A VMDK of any number of extents. Its tables are its sparse extents, in their order."""

    name = "vmdk"
    backing_format = "vmdk"

    def __init__(self, file: FileChild, source: DescriptorFile, extents: Extents) -> None:
        self.file = file
        self.size = layout.capacity(source.parsed)
        self.backing_file = layout.parent_hint(source.parsed, file.name)
        self._source = source
        self._extents = extents
        starts = extents.starts()
        #: One for each table.
        self.grains: Sequence[GrainFile] = [extents.grains[number] for number in starts]
        self._tables = [
            extents.grains[number].table(start, readonly=extents.lines[number].access == "RDONLY")
            for number, start in starts.items()
        ]

    @classmethod
    def recognise(cls, head: bytes, tail: bytes, size: int, filename: str) -> int:
        """Knows every kind of VMDK, those that `open` refuses by name included."""
        return 100 if sparse_variant(head) else descriptor_confidence(head)

    @classmethod
    def open(
        cls,
        file: FileChild,
        opener: Opener,
        *,
        writable: bool,
        options: Mapping[str, object],
    ) -> Self:
        """Reads the descriptor, opens each extent's file once, and reads sparse headers."""
        check_names(options, cls.option_names, "vmdk")
        source = DescriptorFile(file, lambda child, n, offset: child.pread(n, offset))
        layout.check_openable(source.parsed, file.name, embedded=source.embedded)
        if writable:
            layout.check_writable(source.parsed, file.name)
        image = cls(file, source, Extents(file, source, opener))
        image.check_lengths()
        if writable:
            image.can_write()
        return image

    @property
    def files(self) -> Sequence[FileChild]:
        """The file that was opened, and the others in the order of their indices."""
        return self._extents.files

    def extract_files(self) -> Sequence[FileChild]:
        """Every file: each extent is needed to open the image again."""
        return self._extents.files

    # -- the map

    def tables(self) -> Sequence[Table]:
        """One for each sparse extent."""
        return self._tables

    def plain_segments(self) -> Sequence[Segment]:
        """One for each other extent."""
        return self._extents.plain_segments()

    def load(self, table: int, page: int) -> bytes | None:
        """Grain table `page` of a sparse extent."""
        return self.grains[table].load(page)

    def decompress(self, table: int, offset: int) -> bytes:
        """A grain of a sparse extent."""
        return self.grains[table].decompress(offset)

    def allocate(self, table: int, clusters: int) -> Run:
        """Grains of a sparse extent."""
        return self.grains[table].allocate(clusters)

    def free(self, table: int, offset: int, clusters: int) -> None:
        """Grains of a sparse extent."""
        self.grains[table].free(offset, clusters)

    def encode(self, table: int, kind: int, offset: int) -> int:
        """An entry of a grain table."""
        return self.grains[table].encode(kind, offset)

    def store(self, table: int, page: int, first: int, raw: bytes) -> None:
        """Entries of grain tables, the redundant one's included."""
        self.grains[table].store(page, first, raw)

    @property
    def unlinked(self) -> bool:
        """Whether a directory lacks a table that was made."""
        return any(grains.unlinked for grains in self.grains)

    def link(self) -> None:
        """Put tables that were made into their directories."""
        for grains in self.grains:
            if grains.unlinked:
                grains.link()

    # -- the header

    def can_write(self) -> None:
        """Refuses an image no extent of which may be written."""
        parsed = self._source.parsed
        layout.check_writable(parsed, self.file.name)
        flat = any(extent.access == "RW" and layout.holds_data(extent) for extent in parsed.extents)
        if not flat and all(table.readonly for table in self._tables):
            raise FormatError(
                f"a {parsed.create_type} image is not written in place: its grains are compressed,"
                " or its format is only known for reading; open it read-only and copy it",
                file=self.file.name,
                field="createType",
            )

    def before_first_write(self) -> None:
        """Renews the CID."""
        self._source.renew_cid()

    def accept_backing(self, backing: Format) -> None:
        """The parent must not have been written to since this image was made: by its CID."""
        parsed = self._source.parsed
        if not isinstance(backing, Vmdk) or backing.cid != parsed.parent_cid:
            found = backing.cid if isinstance(backing, Vmdk) else None
            shown = "none" if found is None else f"{found:08x}"
            raise FormatError(
                f"the image was made when its parent {backing.file.name!r} had the CID "
                f"{parsed.parent_cid:08x}, which is {shown} now: the parent was written to since, "
                "or is another one; what the image reads as is not what it was",
                file=self.file.name,
                field="parentCID",
            )

    @property
    def cid(self) -> int | None:
        """The content's identity, which changes when the image is first written to."""
        return self._source.parsed.cid

    def revalidate(self, read: ReadAt) -> None:
        """Compares extents, type, parent and headers; the CID may be a new one."""
        fresh = self._source.reread(read)
        if not layout.same_layout(fresh.parsed, self._source.parsed):
            raise FormatError(
                "the descriptor is no longer the one that was opened; open the image again",
                file=self.file.name,
                field="extents",
            )
        self._source.take_over(fresh)
        for grains in self.grains:
            grains.revalidate(read)

    def check_lengths(self) -> None:
        """Every flat extent must lie within its file."""
        self._extents.check_lengths()

    def check(self, repair: Repair) -> CheckReport:
        """Of each sparse file, and that flat ones are long enough."""
        report = CheckReport(self.file.name, self.name)
        with report.telling(self.file.name):
            self.check_lengths()
        for extent in self.grains:
            with report.telling(extent.file.name):
                check_extent(extent, report, repair)
        return report

    def info(self) -> dict[str, object]:
        """What `qemu-img info` gives as the data of its format-specific part."""
        parsed = self._source.parsed
        found: dict[str, object] = {
            "cid": parsed.cid,
            "parent-cid": parsed.parent_cid,
            "create-type": parsed.create_type,
            "extents": [self._extent_info(*each) for each in enumerate(parsed.extents)],
        }
        if parsed.parent_cid != NO_PARENT:
            found["parent"] = self.backing_file
        return found

    def _extent_info(self, number: int, extent: ExtentLine) -> dict[str, object]:
        info: dict[str, object] = {
            "virtual-size": extent.sectors * SECTOR,
            "format": extent.type,
            "access": extent.access,
        }
        if layout.has_file(extent):
            info["filename"] = self._extents.child(extent).name
        if layout.holds_data(extent):
            info["offset"] = (extent.offset or 0) * SECTOR
        if number in self._extents.grains:
            info.update(self._extents.grains[number].info())
        return info
