"""The VMDK driver: a descriptor, and extents whose bytes are the guest's bytes."""

from __future__ import annotations

import errno
import posixpath
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

from fdstash.errors import FormatError, UnsupportedFormatError, os_error
from fdstash.formats.base import FileChild, Format, Kind, Opener, ReadAt, Segment, shown
from fdstash.formats.options import check_names
from fdstash.formats.vmdk import layout
from fdstash.formats.vmdk.descriptor import MAX_BYTES, Descriptor, ExtentLine, parse
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.magic import descriptor_confidence, sparse_variant

__all__ = ["Vmdk"]

_HEAD = 2048
_HEX = re.compile(rb"[0-9A-Fa-f]+")
_RESERVED_CIDS = (0, 0xFFFFFFFE, 0xFFFFFFFF)


class Vmdk(Format):
    """A flat VMDK of any number of extents."""

    name = "vmdk"

    def __init__(
        self,
        file: FileChild,
        text: bytes,
        descriptor: Descriptor,
        children: Mapping[str, FileChild],
    ) -> None:
        self.file = file
        self._text = text  # what `descriptor` was parsed from
        self.size = layout.capacity(descriptor)
        self._descriptor = descriptor
        self._children = children
        distinct = {child.index: child for child in children.values()}
        self._files = (file, *(distinct[index] for index in sorted(distinct)))

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
        """Reads the descriptor and opens each extent's file once."""
        check_names(options, cls.option_names, "vmdk")
        text = _read(file, lambda child, n, offset: child.pread(n, offset))
        descriptor = parse(text, file.name)
        layout.check_openable(descriptor, file.name)
        if writable:
            layout.check_writable(descriptor, file.name)
        image = cls(file, text, descriptor, _open_children(file, descriptor, opener))
        image.check_lengths()
        image._check_overlaps()
        return image

    @property
    def files(self) -> Sequence[FileChild]:
        """The descriptor, and the files of the extents in the order of their indices."""
        return self._files

    def extract_files(self) -> Sequence[FileChild]:
        """Every file: each extent is needed to open the image again."""
        return self._files

    def segments(self) -> Sequence[Segment]:
        """One for each extent line."""
        segments = []
        start = 0
        for extent in self._descriptor.extents:
            length = extent.sectors * SECTOR
            readonly = extent.access == "RDONLY"
            if extent.access == "NOACCESS":
                segments.append(Segment(start, length, Kind.DENIED))
            elif not layout.holds_data(extent):
                segments.append(Segment(start, length, Kind.ZERO, readonly=readonly))
            else:
                child = self._child(extent)
                offset = (extent.offset or 0) * SECTOR
                segments.append(
                    Segment(start, length, Kind.DATA, child.index, offset, readonly=readonly)
                )
            start += length
        return segments

    def can_write(self) -> None:
        """Refuses an image none of whose extents is RW."""
        layout.check_writable(self._descriptor, self.file.name)

    def before_first_write(self) -> None:
        """Puts a new random CID in the place of the old one, in as many digits.

        By it, images that have this one as their parent see that it was written
        to. A descriptor without a CID is left as it is. Raises `FormatError` when
        the old CID is no longer where it was.
        """
        place = self._descriptor.cid_place
        if place is None:
            return
        # Not the digits that were parsed, where a reopen met a write on its way.
        held = self.file.pread(len(place.digits), place.offset)
        if not _HEX.fullmatch(held):
            raise FormatError(
                "another program has written to the descriptor; open the image again",
                file=self.file.name,
                offset=place.offset,
                field="CID",
            )
        digits = _new_cid(held)
        if self.file.pwrite(digits, place.offset) != len(digits):
            raise os_error(errno.EIO, self.file.name, "the new CID was not written whole")
        end = place.offset + len(digits)
        self._text = self._text[: place.offset] + digits + self._text[end:]
        self._descriptor = replace(
            self._descriptor, cid=int(digits, 16), cid_place=place._replace(digits=digits)
        )

    def revalidate(self, read: ReadAt) -> None:
        """Compares the extents, the type and the parent; the CID may be a new one."""
        text = _read(self.file, read)
        if text == self._text:
            return
        fresh = parse(text, self.file.name)
        if not layout.same_layout(fresh, self._descriptor):
            raise FormatError(
                "the descriptor is no longer the one that was opened; open the image again",
                file=self.file.name,
                field="extents",
            )
        self._text, self._descriptor = text, fresh

    def info(self) -> dict[str, object]:
        """What `qemu-img info` gives as the data of its format-specific part."""
        return {
            "cid": self._descriptor.cid,
            "parent-cid": self._descriptor.parent_cid,
            "create-type": self._descriptor.create_type,
            "extents": [self._extent_info(extent) for extent in self._descriptor.extents],
        }

    def _extent_info(self, extent: ExtentLine) -> dict[str, object]:
        info: dict[str, object] = {
            "virtual-size": extent.sectors * SECTOR,
            "format": extent.type,
            "access": extent.access,
        }
        if layout.holds_data(extent):
            info["filename"] = self._child(extent).name
            info["offset"] = (extent.offset or 0) * SECTOR
        return info

    def _child(self, extent: ExtentLine) -> FileChild:
        return self._children[extent.name or ""]

    def check_lengths(self) -> None:
        """Every extent must lie within its file."""
        sizes: dict[int, int] = {}
        for number, extent in enumerate(self._descriptor.extents):
            if not layout.holds_data(extent):
                continue
            child = self._child(extent)
            if child.index not in sizes:
                sizes[child.index] = child.size
            end = ((extent.offset or 0) + extent.sectors) * SECTOR
            if end > sizes[child.index]:
                raise FormatError(
                    f"extent {number}: {shown(child.name, 200)} has {sizes[child.index]} bytes, "
                    f"the extent needs {end}",
                    file=self.file.name,
                    offset=self._descriptor.lines[number],
                    field="sectors",
                )

    def _check_overlaps(self) -> None:
        """No byte of a file may be two bytes of the disk, if one of them is written."""
        regions = sorted(
            _Region(
                self._child(extent).index,
                extent.offset or 0,
                (extent.offset or 0) + extent.sectors,
                extent.access == "RW",
                number,
            )
            for number, extent in enumerate(self._descriptor.extents)
            if layout.holds_data(extent)
        )
        # The regions that reach furthest, of all and of the RW ones.
        last: _Region | None = None
        written: _Region | None = None
        for region in regions:
            if last is None or region.file != last.file:
                last = written = None
            for other in (last if region.writable else None, written):
                if other is not None and region.start < other.end:
                    raise self._overlap(region, other)
            if last is None or region.end > last.end:
                last = region
            if region.writable and (written is None or region.end > written.end):
                written = region

    def _overlap(self, one: _Region, other: _Region) -> FormatError:
        first, second = sorted((one.number, other.number))
        name = self._descriptor.extents[second].name or ""
        return FormatError(
            f"extent {second} overlaps extent {first} in {shown(name)}, and one of them is RW",
            file=self.file.name,
            offset=self._descriptor.lines[second],
            field="offset",
        )


class _Region(NamedTuple):
    file: int
    start: int  # sectors
    end: int  # sectors
    writable: bool
    number: int


def _read(file: FileChild, read: ReadAt) -> bytes:
    """The descriptor's bytes; anything else and anything too long is refused unread."""
    head = read(file, _HEAD, 0)
    variant = sparse_variant(head)
    if variant is not None:
        raise UnsupportedFormatError(
            f"recognised as VMDK ({variant}), which is not opened yet, only flat VMDK is; "
            "sparse VMDK comes later",
            file=file.name,
            offset=0,
            field="magic",
        )
    if not descriptor_confidence(head):
        raise FormatError(
            "this is no VMDK: it starts neither like a descriptor nor with a known magic; "
            "name the descriptor, not an extent",
            file=file.name,
            offset=0,
            field="magic",
        )
    size = file.size
    if size >= MAX_BYTES:
        raise FormatError(
            f"a descriptor has less than {MAX_BYTES} bytes, and this file has {size}",
            file=file.name,
            field="descriptor",
        )
    return head if size <= len(head) else read(file, size, 0)


def _open_children(file: FileChild, descriptor: Descriptor, opener: Opener) -> dict[str, FileChild]:
    """The files of the extents, by the text that names them; the RW ones opened first."""
    children: dict[str, FileChild] = {}
    own = posixpath.basename(file.name)
    for access in ("RW", "RDONLY"):
        for number, extent in enumerate(descriptor.extents):
            text = extent.name or ""
            if extent.access != access or not layout.holds_data(extent) or text in children:
                continue
            child = None
            if posixpath.normpath(text) != own:
                child = opener.open(text, writable=access == "RW")
            if child is None or child.index == file.index:
                raise FormatError(
                    f"extent {number}: the descriptor names itself as an extent",
                    file=file.name,
                    offset=descriptor.lines[number],
                    field="file name",
                )
            children[text] = child
    return children


def _new_cid(old: bytes) -> bytes:
    """A CID that is not the old one and means nothing special, in as many digits."""
    while True:
        digits = secrets.token_hex(4)[: len(old)].encode("ascii")
        if int(digits, 16) not in (*_RESERVED_CIDS, int(old, 16)):
            return digits
