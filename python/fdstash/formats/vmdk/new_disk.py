"""What a new VMDK of any subformat is asked to be: sizes, names, descriptor."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from fdstash.errors import FormatError, OptionError
from fdstash.formats.base import shown
from fdstash.formats.options import check_size
from fdstash.formats.vmdk.descriptor import MAX_EXTENTS, NO_PARENT, Descriptor, ExtentLine, build
from fdstash.formats.vmdk.layout import MAX_CAPACITY, SECTOR
from fdstash.formats.vmdk.parent import Parent

__all__ = ["NewDisk", "extent_lengths", "folder_prefix", "sectors_of"]

_SPLIT_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A disk that is to be made."""

    path: str
    sectors: int
    subformat: str
    adapter_type: str = "ide"
    hwversion: str = "4"
    toolsversion: str = "2147483647"
    zeroed_grain: bool = False
    parent: Parent | None = None

    @property
    def name(self) -> str:
        """The last component of the path."""
        return os.path.basename(self.path)

    def beside(self, name: str) -> str:
        """The path of a file that the descriptor calls `name`."""
        return os.path.join(os.path.dirname(self.path), name)

    def extent_name(self, tag: str, prefix: str = "") -> str:
        """As QEMU names an extent: `tag` before the suffix, `prefix` before it all."""
        stem, suffix = os.path.splitext(self.name)
        if self.name.startswith(".") and not suffix:  # as QEMU has it, ".vmdk" is all suffix
            stem, suffix = "", self.name
        return f"{prefix}{stem}-{tag}{suffix}"

    def descriptor(self, extents: list[ExtentLine]) -> bytes:
        """The text, with a new CID. Raises `FormatError` where a name cannot be in it."""
        names = "".join(extent.name or "" for extent in extents)
        settings: tuple[tuple[str, str], ...] = ()
        if self.parent is not None:
            names += self.parent.hint
            settings = (("parentFileNameHint", self.parent.hint),)
        made = Descriptor(
            create_type=self.subformat,
            extents=tuple(extents),
            cid=secrets.randbelow(0xFFFFFFFD) + 1,
            encoding=None if names.isascii() else "UTF-8",
            settings=settings,
            parent_cid=NO_PARENT if self.parent is None else self.parent.cid,
            database=tuple(self._database()),
        )
        try:
            return build(made)
        except FormatError as error:
            raise FormatError(
                f"extents cannot be named after {shown(self.name)}: {error.message}",
                file=self.path,
            ) from error

    def _database(self) -> Iterator[tuple[str, str]]:
        """The entries that QEMU writes; the geometry is the BIOS one for the adapter."""
        heads, per_track = (16 if self.adapter_type == "ide" else 255), 63
        yield "ddb.virtualHWVersion", self.hwversion
        yield "ddb.geometry.cylinders", str(self.sectors // (heads * per_track))
        yield "ddb.geometry.heads", str(heads)
        yield "ddb.geometry.sectors", str(per_track)
        yield "ddb.adapterType", self.adapter_type
        yield "ddb.toolsVersion", self.toolsversion


def sectors_of(size: int) -> int:
    """The sectors of a disk of `size` bytes, which need not be whole sectors."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise OptionError(f"size must be a number of bytes, not {size!r}", option="size")
    if not 0 < size <= MAX_CAPACITY:
        raise OptionError(f"a VMDK has from 1 to {MAX_CAPACITY} bytes, not {size}", option="size")
    return -(-size // SECTOR)


def extent_lengths(sectors: int, subformat: str, extent_size: int | None) -> list[int]:
    """The sectors of each extent, of which only the twoGbMaxExtent kinds have many."""
    if not subformat.startswith("twoGb"):
        if extent_size is not None:
            raise OptionError(
                "extent_size is for twoGbMaxExtentFlat and twoGbMaxExtentSparse; "
                f"{subformat} has one extent",
                option="extent_size",
            )
        return [sectors]
    given = check_size({"extent_size": extent_size}, "extent_size")
    each, rest = divmod(_SPLIT_BYTES if given is None else given, SECTOR)
    if each == 0 or rest:
        raise OptionError(
            f"extent_size must be a multiple of {SECTOR} bytes, not {extent_size}",
            option="extent_size",
        )
    count = -(-sectors // each)
    if count > MAX_EXTENTS:
        raise OptionError(
            f"{count} extents are more than {MAX_EXTENTS}; choose a larger extent_size",
            option="extent_size",
        )
    return [each] * (count - 1) + [sectors - each * (count - 1)]


def folder_prefix(folder: str | None, subformat: str) -> str:
    """What names of extents start with. Raises `OptionError` where it cannot be."""
    if folder is None:
        return ""
    if subformat in ("monolithicSparse", "streamOptimized"):
        raise OptionError(
            f"folder is for extents in files of their own; {subformat} is one file",
            option="folder",
        )
    parts = folder.split("/")
    if folder.startswith("/") or ".." in parts or not any(part.strip(".") for part in parts):
        raise OptionError(
            f"folder must be beneath the descriptor's own, and not {folder!r}", option="folder"
        )
    return folder.rstrip("/") + "/"
