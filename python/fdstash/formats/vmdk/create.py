"""New VMDK images, named and laid out as `qemu-img create` does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from fdstash.errors import OptionError
from fdstash.formats.options import (
    PREALLOCATION,
    CreateOption,
    check_choice,
    check_flag,
    check_text,
)
from fdstash.formats.staging import Staging
from fdstash.formats.vmdk import create_sparse
from fdstash.formats.vmdk.descriptor import ExtentLine
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.new_disk import NewDisk, extent_lengths, folder_prefix, sectors_of
from fdstash.formats.vmdk.parent import read_parent

__all__ = ["CREATE_OPTIONS", "create"]

_FLAT = ("monolithicFlat", "twoGbMaxExtentFlat", "vmfs")
_SUBFORMATS = (*_FLAT, *create_sparse.SUBFORMATS)
_ADAPTERS = ("ide", "buslogic", "lsilogic", "legacyESX")
_COMPAT6_VERSION = "6"

CREATE_OPTIONS: Mapping[str, CreateOption] = {
    "subformat": CreateOption("choice", "how the disk is laid out in files", _SUBFORMATS),
    "extent_size": CreateOption(
        "size",
        "of each extent of the twoGbMaxExtent kinds (default: 2 GiB), in whole sectors or grains",
    ),
    "adapter_type": CreateOption("choice", "the controller that a guest is to see", _ADAPTERS),
    "hwversion": CreateOption("text", "version of the virtual hardware (default: 4)"),
    "compat6": CreateOption("flag", "version 6 of the virtual hardware"),
    "toolsversion": CreateOption("text", "version of the guest tools"),
    "zeroed_grain": CreateOption("flag", "sparse kinds: grains of zeros take no space"),
    "backing_file": CreateOption("text", "sparse kinds: the parent, relative to the new image"),
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
    hwversion: str | None = None,
    compat6: bool = False,
    toolsversion: str = "2147483647",
    zeroed_grain: bool = False,
    backing_file: str | None = None,
    preallocation: str = "off",
    folder: str | None = None,
    content: Iterable[tuple[int, bytes]] = (),
) -> None:
    """Makes a VMDK of `size` bytes, rounded up to whole sectors, that reads as zeros.

    `path` is the descriptor, or for monolithicSparse and streamOptimized all there
    is. Extents lie beside it, or in `folder` beneath its own, as `NAME-flat.vmdk`,
    `NAME-f001.vmdk` (flat) or `NAME-s001.vmdk` (sparse) and so on. `extent_size` is
    in bytes. Existing images are replaced, all files at once or none.

    `content` is for streamOptimized, which is written once: offsets and bytes, whole
    grains of 64 KiB in ascending order, but for the end of the disk.

    With `backing_file`, a VMDK, the new image reads as its parent until it is
    written to; the name is kept as given. `compat6` and `hwversion` exclude each
    other; `preallocation` is for flat kinds, `zeroed_grain` and `backing_file` are
    for the others.

    Raises `OptionError` for options that do not fit, `FormatError` where the
    descriptor would not be read back the same (an odd name, too many extents) or
    the parent has none, `ImageIOError`, and `LockError` when a file to be replaced
    is in use.
    """
    check_choice(subformat, "subformat", _SUBFORMATS)
    check_choice(adapter_type, "adapter_type", _ADAPTERS)
    check_choice(preallocation, "preallocation", PREALLOCATION.choices)
    check_text(toolsversion, "toolsversion")
    flat = subformat in _FLAT
    version = _hardware_version(hwversion, compat6=check_flag(compat6, "compat6"))
    for name, given, fits in (
        ("zeroed_grain", check_flag(zeroed_grain, "zeroed_grain"), not flat),
        ("backing_file", backing_file is not None, not flat),
        ("preallocation", preallocation != "off", flat),
    ):
        if given and not fits:
            raise OptionError(f"{subformat} does not have {name}", option=name)
    sectors = sectors_of(size)
    lengths = extent_lengths(sectors, subformat, extent_size)
    prefix = folder_prefix(folder, subformat)
    target = os.fspath(path)
    disk = NewDisk(
        path=target,
        sectors=sectors,
        subformat=subformat,
        adapter_type=adapter_type,
        hwversion=version,
        toolsversion=toolsversion,
        zeroed_grain=zeroed_grain,
        parent=None if backing_file is None else read_parent(backing_file, target),
    )
    with Staging() as staging:
        if flat:
            _stage_flat(staging, disk, lengths, prefix, preallocation)
        else:
            create_sparse.stage(staging, disk, lengths, prefix, content)
        staging.commit()


def _hardware_version(given: str | None, *, compat6: bool) -> str:
    if not compat6:
        return "4" if given is None else check_text(given, "hwversion")
    if given is not None:
        raise OptionError("compat6 says which hwversion it is; leave one out", option="compat6")
    return _COMPAT6_VERSION


def _stage_flat(
    staging: Staging, disk: NewDisk, lengths: list[int], prefix: str, preallocation: str
) -> None:
    if disk.subformat == "twoGbMaxExtentFlat":
        tags = [f"f{n:03}" for n in range(1, len(lengths) + 1)]
    else:
        tags = ["flat"]
    extents = [
        ExtentLine("RW", length, "VMFS", disk.extent_name(tag, prefix))
        if disk.subformat == "vmfs"
        else ExtentLine("RW", length, "FLAT", disk.extent_name(tag, prefix), 0)
        for tag, length in zip(tags, lengths, strict=True)
    ]
    text = disk.descriptor(extents)
    if prefix:
        staging.make_folder(disk.beside(prefix))
    for extent in extents:
        staging.add(disk.beside(extent.name or ""), extent.sectors * SECTOR, preallocation)
    staging.add_bytes(disk.path, text)
