"""What a descriptor means: whether it can be opened, written to, and how large it is.

Limits: an image of at most 2**63 - 512 bytes, and no file used beyond what an
`off_t` can address.
"""

from __future__ import annotations

from typing import NoReturn

from fdstash.errors import FormatError, UnsupportedFormatError
from fdstash.formats.base import MAX_OFFSET, shown
from fdstash.formats.vmdk.descriptor import NO_PARENT, Descriptor, ExtentLine

__all__ = [
    "MAX_CAPACITY",
    "SECTOR",
    "capacity",
    "check_openable",
    "check_writable",
    "holds_data",
    "same_layout",
]

SECTOR = 512
MAX_CAPACITY = MAX_OFFSET // SECTOR * SECTOR

_DATA_TYPES = ("FLAT", "VMFS")
_SPARSE_TYPES = ("SPARSE", "VMFSSPARSE", "SESPARSE", "VSANSPARSE")
_DEVICE_TYPES = ("VMFSRDM", "VMFSRAW")

# Flat images, and those that may be made of flat extents. Whether a device may
# be opened is for the resolver to say, not for a name.
_OPENED = frozenset(
    name.lower()
    for name in (
        "monolithicFlat",
        "twoGbMaxExtentFlat",
        "2GbMaxExtentFlat",
        "vmfs",
        "vmfsPreallocated",
        "vmfsEagerZeroedThick",
        "vmfsThin",
        "fullDevice",
        "partitionedDevice",
        "custom",
    )
)
_SPARSE = frozenset(
    name.lower()
    for name in (
        "monolithicSparse",
        "twoGbMaxExtentSparse",
        "2GbMaxExtentSparse",
        "streamOptimized",
        "vmfsSparse",
        "seSparse",
        "vsanSparse",
    )
)


def holds_data(extent: ExtentLine) -> bool:
    """Whether the extent's bytes are in a file that may be read."""
    return extent.access != "NOACCESS" and extent.type in _DATA_TYPES


def capacity(descriptor: Descriptor) -> int:
    """The guest's disk in bytes."""
    return SECTOR * sum(extent.sectors for extent in descriptor.extents)


def same_layout(a: Descriptor, b: Descriptor) -> bool:
    """Whether two descriptors put the same bytes in the same places."""
    return (
        a.extents == b.extents
        and a.parent_cid == b.parent_cid
        and a.create_type.lower() == b.create_type.lower()
    )


def check_openable(descriptor: Descriptor, file: str) -> None:
    """Raises `FormatError` for what is wrong, `UnsupportedFormatError` for what comes later."""
    kind = descriptor.create_type.lower()
    if kind in _SPARSE:
        raise UnsupportedFormatError(
            f"{descriptor.create_type} images are not opened yet, only flat ones; "
            "sparse VMDK comes later",
            file=file,
            field="createType",
        )
    if kind not in _OPENED:
        raise UnsupportedFormatError(
            f"images of type {shown(descriptor.create_type)} are not opened",
            file=file,
            field="createType",
        )
    if descriptor.parent_cid != NO_PARENT:
        raise UnsupportedFormatError(
            f"the image is a difference to a parent (parentCID {descriptor.parent_cid:08x}); "
            "images with parents come later",
            file=file,
            field="parentCID",
        )
    if not descriptor.extents:
        raise FormatError("the descriptor names no extent", file=file, field="extents")
    total = 0
    for number, extent in enumerate(descriptor.extents):
        _Line(descriptor, file, number).check(extent)
        total += extent.sectors
        if total * SECTOR > MAX_CAPACITY:
            _Line(descriptor, file, number).fail(
                "sectors", f"the extents up to here have more than {MAX_CAPACITY} bytes"
            )


def check_writable(descriptor: Descriptor, file: str) -> None:
    """Raises `FormatError` when no extent may be written."""
    if any(extent.access == "RW" and holds_data(extent) for extent in descriptor.extents):
        return
    raise FormatError(
        "no extent of this image may be written (none is RW); open it read-only",
        file=file,
        field="access",
    )


class _Line:
    def __init__(self, descriptor: Descriptor, file: str, number: int) -> None:
        self._offset = descriptor.lines[number] if descriptor.lines else None
        self._file = file
        self._number = number

    def check(self, extent: ExtentLine) -> None:
        if extent.sectors == 0:
            self.fail("sectors", "an extent of no sectors")
        if extent.access == "NOACCESS" or extent.type == "ZERO":
            return
        if extent.type in _SPARSE_TYPES:
            self.fail(
                "extent type",
                f"{extent.type} extents are not opened yet; sparse VMDK comes later",
                UnsupportedFormatError,
            )
        if extent.type in _DEVICE_TYPES:
            self.fail(
                "extent type",
                f"{extent.type} extents are mappings that only an ESX host resolves",
                UnsupportedFormatError,
            )
        if extent.type not in _DATA_TYPES:
            self.fail("extent type", f"{shown(extent.type)} is no type of extent")
        if not extent.name:
            self.fail("file name", "the extent names no file (a name stands between quotes)")
        if ((extent.offset or 0) + extent.sectors) * SECTOR > MAX_OFFSET:
            self.fail("offset", "the extent ends beyond the largest offset of a file")

    def fail(self, field: str, message: str, kind: type[FormatError] = FormatError) -> NoReturn:
        raise kind(
            f"extent {self._number}: {message}", file=self._file, offset=self._offset, field=field
        )
