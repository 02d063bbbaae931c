"""A boot disk: an image of a GRUB rescue disk, in files of fdstash's."""

from __future__ import annotations

import shutil
from pathlib import Path

import fdstash

__all__ = ["RESCUE_DISK", "SUBFORMAT", "make", "move"]

#: From Debian's package grub-rescue-pc.
RESCUE_DISK = Path("/usr/lib/grub-rescue/grub-rescue-usb.img")
#: Of VMDK: many files, which grow as they are written.
SUBFORMAT = "twoGbMaxExtentSparse"
CYLINDER = 16 * 63 * 512
GRAIN = 65536
EXTENT = 1 << 20  # small, so that the disk is many files


def make(path: Path, subformat: str = SUBFORMAT, content: Path = RESCUE_DISK) -> None:
    """Create a VMDK with what `content` holds, in whole cylinders."""
    data = content.read_bytes()
    size = -(-len(data) // CYLINDER) * CYLINDER
    many = {"extent_size": EXTENT} if subformat.startswith("twoGb") else {}
    fdstash.create(path, "vmdk", size, subformat=subformat, **many)
    with fdstash.open(path, "r+") as image:
        for offset in range(0, len(data), GRAIN):
            grain = data[offset : offset + GRAIN]
            if grain.strip(b"\0"):  # what is not written reads as zeros, and takes no space
                image.pwrite(grain, offset)


def move(image: fdstash.Image, folder: Path, **options: object) -> fdstash.ReopenReport:
    """Move the files of an image to a new folder; `options` are those of `reopen`.

    The new files are there before the reopen and the old ones until after it: a
    reopen that fails leaves the image where it was. Nothing must be written between
    the copy and the reopen.
    """
    old = Path(image.name)
    shutil.copytree(old.parent, folder)
    report = image.reopen(path=folder / old.name, **options)  # type: ignore[arg-type]
    shutil.rmtree(old.parent)
    return report
