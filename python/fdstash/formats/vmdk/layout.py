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
    "has_file",
    "holds_data",
    "is_sparse",
    "parent_hint",
    "same_layout",
]

SECTOR = 512
MAX_CAPACITY = MAX_OFFSET // SECTOR * SECTOR

_DATA_TYPES = ("FLAT", "VMFS")
_SPARSE_TYPES = ("SPARSE", "VMFSSPARSE", "SESPARSE")
_DEVICE_TYPES = ("VMFSRDM", "VMFSRAW")
_HINT = "parentfilenamehint"

# Whether a device may be opened is for the resolver to say, not for a name.
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
        "monolithicSparse",
        "twoGbMaxExtentSparse",
        "2GbMaxExtentSparse",
        "streamOptimized",
        "vmfsSparse",
        "seSparse",
        "custom",
    )
)


def holds_data(extent: ExtentLine) -> bool:
    """Whether the extent's bytes are bytes of a file that may be read."""
    return extent.access != "NOACCESS" and extent.type in _DATA_TYPES


def is_sparse(extent: ExtentLine) -> bool:
    """Whether the extent is a file of grains that may be read."""
    return extent.access != "NOACCESS" and extent.type in _SPARSE_TYPES


def has_file(extent: ExtentLine) -> bool:
    """Whether the extent has a file that may be read."""
    return holds_data(extent) or is_sparse(extent)


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


def parent_hint(descriptor: Descriptor, file: str) -> str | None:
    """What the descriptor calls the parent; None where there is none."""
    if descriptor.parent_cid == NO_PARENT:
        return None
    for key, value in descriptor.settings:
        if key.lower() == _HINT and value:
            return value
    raise FormatError(
        f"the image is a difference to a parent (parentCID {descriptor.parent_cid:08x}), and does"
        " not say where that is",
        file=file,
        field="parentFileNameHint",
    )


def check_openable(descriptor: Descriptor, file: str, *, embedded: bool) -> None:
    """Raises `FormatError` for what is wrong, `UnsupportedFormatError` for what is not opened.

    `embedded`: the descriptor is in the file of the only extent.
    """
    kind = descriptor.create_type.lower()
    if kind not in _OPENED:
        raise UnsupportedFormatError(
            f"images of type {shown(descriptor.create_type)} are not opened",
            file=file,
            field="createType",
        )
    if not descriptor.extents:
        raise FormatError("the descriptor names no extent", file=file, field="extents")
    if embedded:
        _check_embedded(descriptor, file)
    total = 0
    for number, extent in enumerate(descriptor.extents):
        _Line(descriptor, file, number).check(extent)
        total += extent.sectors
        if total * SECTOR > MAX_CAPACITY:
            _Line(descriptor, file, number).fail(
                "sectors", f"the extents up to here have more than {MAX_CAPACITY} bytes"
            )


def _check_embedded(descriptor: Descriptor, file: str) -> None:
    """The name may be one that the file had before."""
    only = descriptor.extents[0]
    if len(descriptor.extents) > 1 or only.type != "SPARSE" or not is_sparse(only):
        raise UnsupportedFormatError(
            "a descriptor inside a sparse extent names that extent alone; "
            f"this one has {len(descriptor.extents)} extents, the first of type {only.type}",
            file=file,
            field="extents",
        )


def check_writable(descriptor: Descriptor, file: str) -> None:
    """Raises `FormatError` when no extent may be written."""
    if any(extent.access == "RW" and has_file(extent) for extent in descriptor.extents):
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
        if extent.type == "VSANSPARSE":
            self.fail(
                "extent type",
                "VSANSPARSE extents are objects that only an ESX host opens",
                UnsupportedFormatError,
            )
        if extent.type in _DEVICE_TYPES:
            self.fail(
                "extent type",
                f"{extent.type} extents are mappings that only an ESX host resolves",
                UnsupportedFormatError,
            )
        if extent.type not in (*_DATA_TYPES, *_SPARSE_TYPES):
            self.fail("extent type", f"{shown(extent.type)} is no type of extent")
        if not extent.name:
            self.fail("file name", "the extent names no file (a name stands between quotes)")
        if ((extent.offset or 0) + extent.sectors) * SECTOR > MAX_OFFSET:
            self.fail("offset", "the extent ends beyond the largest offset of a file")

    def fail(self, field: str, message: str, kind: type[FormatError] = FormatError) -> NoReturn:
        raise kind(
            f"extent {self._number}: {message}", file=self._file, offset=self._offset, field=field
        )
