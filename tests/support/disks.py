"""Images for tests: flat VMDKs of hand-written descriptors, and bytes to put into them."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "ODD_EXTENTS",
    "SECTOR",
    "ExtentSpec",
    "FlatDisk",
    "descriptor_text",
    "make_flat",
    "make_flat_for_qemu",
    "make_raw",
    "noise",
    "write_file",
]

SECTOR = 512


def noise(length: int, seed: int = 0) -> bytes:
    """Bytes that differ from place to place and from seed to seed, none of them zero for long."""
    return random.Random(seed).randbytes(length)


class ExtentSpec(NamedTuple):
    """One extent line."""

    access: str
    sectors: int
    type: str = "FLAT"
    name: str | None = None  #: of the file; None for ZERO
    start: int = 0  #: sector in the file
    further: str = ""

    @property
    def length(self) -> int:
        return self.sectors * SECTOR

    @property
    def line(self) -> str:
        line = f"{self.access} {self.sectors} {self.type}"
        if self.name is not None:
            line += f' "{self.name}" {self.start}'
        return f"{line} {self.further}".rstrip()


#: Boundaries on no page, offsets that move pages apart, and one file that serves two extents.
ODD_EXTENTS = (
    ExtentSpec("RW", 37, name="disk-a.bin"),
    ExtentSpec("RW", 128, name="disk-b.bin", start=8),
    ExtentSpec("RW", 91, name="disk-c.bin", start=3),
    ExtentSpec("RW", 24, name="disk-a.bin", start=64),
    ExtentSpec("RW", 203, name="disk-d.bin", start=1),
)


def descriptor_text(extents: Sequence[ExtentSpec], create_type: str = "custom") -> str:
    lines = "\n".join(extent.line for extent in extents)
    return (
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="{create_type}"\n\n# Extent description\n{lines}\n\n'
        '# The Disk Data Base\n#DDB\n\nddb.adapterType = "ide"\n'
    )


class FlatDisk(NamedTuple):
    """A flat VMDK on disk."""

    path: Path
    extents: tuple[ExtentSpec, ...]

    @property
    def size(self) -> int:
        return sum(extent.length for extent in self.extents)

    @property
    def files(self) -> list[Path]:
        """Every file, the descriptor first."""
        names = dict.fromkeys(e.name for e in self.extents if e.name is not None)
        return [self.path, *(self.path.parent / name for name in names)]

    def guest_bytes(self) -> bytes:
        """What a guest must read, by the extent lines and the files alone; NOACCESS as zeros."""
        parts = []
        for extent in self.extents:
            if extent.name is None or extent.access == "NOACCESS":
                parts.append(bytes(extent.length))
                continue
            with (self.path.parent / extent.name).open("rb") as file:
                file.seek(extent.start * SECTOR)
                parts.append(file.read(extent.length))
        return b"".join(parts)


def make_flat(
    folder: Path,
    extents: Sequence[ExtentSpec] = ODD_EXTENTS,
    *,
    name: str = "disk.vmdk",
    create_type: str = "custom",
    seed: int | None = 1,
) -> FlatDisk:
    """Write the descriptor and its files, long enough and a little longer; `seed` None: zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    ends: dict[str, int] = {}
    for extent in extents:
        if extent.name is not None:
            end = (extent.start + extent.sectors) * SECTOR
            ends[extent.name] = max(ends.get(extent.name, 0), end)
    for number, (text, end) in enumerate(ends.items()):
        path = folder / text
        path.parent.mkdir(parents=True, exist_ok=True)
        size = end + number * SECTOR
        path.write_bytes(bytes(size) if seed is None else noise(size, seed + number))
    path = folder / name
    path.write_text(descriptor_text(extents, create_type))
    return FlatDisk(path, tuple(extents))


def make_flat_for_qemu(folder: Path, *, seed: int | None = 1) -> FlatDisk:
    """As QEMU takes it, which is with RW extents from the start of their files only."""
    extents = [ExtentSpec("RW", 128, name="a.bin"), ExtentSpec("RW", 128, name="b.bin")]
    return make_flat(folder, extents, create_type="twoGbMaxExtentFlat", seed=seed)


def make_raw(folder: Path, size: int = 1 << 20, *, name: str = "disk.raw", seed: int = 1) -> Path:
    path = folder / name
    path.write_bytes(noise(size, seed))
    os.chmod(path, 0o644)
    return path


def write_file(path: Path, content: bytes) -> Path:
    """A file with these bytes, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
