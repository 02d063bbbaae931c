"""New flat VMDK images, named and laid out as `qemu-img create` does."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping

from fdstash.errors import FormatError, OptionError
from fdstash.formats.base import shown
from fdstash.formats.options import (
    PREALLOCATION,
    CreateOption,
    check_choice,
    check_size,
    check_text,
)
from fdstash.formats.staging import Staging
from fdstash.formats.vmdk.descriptor import MAX_EXTENTS, Descriptor, ExtentLine, build
from fdstash.formats.vmdk.layout import MAX_CAPACITY, SECTOR

__all__ = ["CREATE_OPTIONS", "create"]

_SUBFORMATS = ("monolithicFlat", "twoGbMaxExtentFlat", "vmfs")
_ADAPTERS = ("ide", "buslogic", "lsilogic", "legacyESX")
_SPLIT_BYTES = 2 << 30

CREATE_OPTIONS: Mapping[str, CreateOption] = {
    "subformat": CreateOption("choice", "how the disk is laid out in files", _SUBFORMATS),
    "extent_size": CreateOption(
        "size", "of each extent of twoGbMaxExtentFlat, in whole sectors (default: 2 GiB)"
    ),
    "adapter_type": CreateOption("choice", "the controller that a guest is to see", _ADAPTERS),
    "hwversion": CreateOption("text", "version of the virtual hardware (default: 4)"),
    "toolsversion": CreateOption("text", "version of the guest tools"),
    "preallocation": PREALLOCATION,
    "folder": CreateOption("text", "folder for the extents, beneath the descriptor's own"),
}


def create(
    path: str | os.PathLike[str],
    size: int,
    *,
    subformat: str = "monolithicFlat",
    extent_size: int | None = None,
    adapter_type: str = "ide",
    hwversion: str = "4",
    toolsversion: str = "2147483647",
    preallocation: str = "off",
    folder: str | None = None,
) -> None:
    """Makes a VMDK of `size` bytes, rounded up to whole sectors, that reads as zeros.

    `path` is the descriptor; the extents lie beside it, or in `folder` beneath
    its own, as `NAME-flat.vmdk` or `NAME-f001.vmdk` and so on. `extent_size` is
    in bytes. Existing images are replaced, all files at once or none.

    Raises `OptionError` for options that do not fit, `FormatError` where the
    descriptor would not be read back the same (an odd name, too many extents),
    `ImageIOError`, and `LockError` when a file to be replaced is in use.
    """
    check_choice(subformat, "subformat", _SUBFORMATS)
    check_choice(adapter_type, "adapter_type", _ADAPTERS)
    check_choice(preallocation, "preallocation", PREALLOCATION.choices)
    check_text(hwversion, "hwversion")
    check_text(toolsversion, "toolsversion")
    sectors = _sectors(size)
    lengths = _extent_lengths(sectors, subformat, extent_size)
    prefix = _folder_prefix(folder)
    home, name = os.path.split(os.fspath(path))
    stem, suffix = os.path.splitext(name)
    if name.startswith(".") and not suffix:  # as QEMU has it, ".vmdk" is all suffix
        stem, suffix = "", name
    if subformat == "twoGbMaxExtentFlat":
        names = [f"{prefix}{stem}-f{n:03}{suffix}" for n in range(1, len(lengths) + 1)]
    else:
        names = [f"{prefix}{stem}-flat{suffix}"]
    descriptor = Descriptor(
        create_type=subformat,
        extents=tuple(
            ExtentLine("RW", length, "VMFS", text)
            if subformat == "vmfs"
            else ExtentLine("RW", length, "FLAT", text, 0)
            for text, length in zip(names, lengths, strict=True)
        ),
        cid=secrets.randbelow(0xFFFFFFFD) + 1,
        encoding=None if names[0].isascii() else "UTF-8",
        database=tuple(_database(sectors, adapter_type, hwversion, toolsversion)),
    )
    try:
        text = build(descriptor)
    except FormatError as error:
        raise FormatError(
            f"extents cannot be named after {shown(name)}: {error.message}", file=os.fspath(path)
        ) from error
    with Staging() as staging:
        if prefix:
            staging.make_folder(os.path.join(home, prefix))
        for extent, length in zip(names, lengths, strict=True):
            staging.add(os.path.join(home, extent), length * SECTOR, preallocation)
        staging.add_bytes(path, text)
        staging.commit()


def _sectors(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int):
        raise OptionError(f"size must be a number of bytes, not {size!r}", option="size")
    if not 0 < size <= MAX_CAPACITY:
        raise OptionError(f"a VMDK has from 1 to {MAX_CAPACITY} bytes, not {size}", option="size")
    return -(-size // SECTOR)


def _extent_lengths(sectors: int, subformat: str, extent_size: int | None) -> list[int]:
    """The sectors of each extent."""
    if subformat != "twoGbMaxExtentFlat":
        if extent_size is not None:
            raise OptionError(
                f"extent_size is for twoGbMaxExtentFlat; {subformat} has one extent",
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


def _folder_prefix(folder: str | None) -> str:
    if folder is None:
        return ""
    parts = folder.split("/")
    if folder.startswith("/") or ".." in parts or not any(part.strip(".") for part in parts):
        raise OptionError(
            f"folder must be beneath the descriptor's own, and not {folder!r}", option="folder"
        )
    return folder.rstrip("/") + "/"


def _database(
    sectors: int, adapter_type: str, hwversion: str, toolsversion: str
) -> Iterator[tuple[str, str]]:
    """The entries that QEMU writes; the geometry is the BIOS one for the adapter."""
    heads, per_track = (16 if adapter_type == "ide" else 255), 63
    yield "ddb.virtualHWVersion", hwversion
    yield "ddb.geometry.cylinders", str(sectors // (heads * per_track))
    yield "ddb.geometry.heads", str(heads)
    yield "ddb.geometry.sectors", str(per_track)
    yield "ddb.adapterType", adapter_type
    yield "ddb.toolsVersion", toolsversion
