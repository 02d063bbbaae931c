"""Sparse VMDKs to begin with: deltas over a parent, of hosted products and of ESX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import fdstash
from fdstash.formats.vmdk.cowd import CowdHeader
from tests.support.disks import SECTOR, noise
from tests.support.sparse_files import parent_of

__all__ = ["HOSTED_GRAIN", "SparseDisk", "make_cowd", "make_delta", "make_parent"]

HOSTED_GRAIN = 64 << 10
_PARENT = "parent.vmdk"
_MOST = 16 << 20  # bytes of noise


class SparseDisk(NamedTuple):
    """An image on disk."""

    path: Path
    extents: tuple[Path, ...]

    @property
    def parent(self) -> Path | None:
        return parent_of(self.path)

    @property
    def files(self) -> list[Path]:
        """Every file: the descriptor, the extents, and the parent's one file."""
        parent = self.parent
        return [self.path, *self.extents, *([parent] if parent else [])]


def make_parent(folder: Path, size: int, *, seed: int = 1) -> Path:
    """A monolithicSparse image with noise in two grains of three of its first 16 MiB."""
    path = folder / _PARENT
    fdstash.create(path, "vmdk", size, subformat="monolithicSparse")
    with fdstash.open(path, "r+") as image:
        for number, offset in enumerate(range(0, min(size, _MOST) - HOSTED_GRAIN, HOSTED_GRAIN)):
            if number % 3 != 1:
                image.pwrite(noise(HOSTED_GRAIN, seed + number), offset)
    return path


def make_delta(
    folder: Path, size: int, extent_size: int, *, seed: int = 1, zeroed_grain: bool = True
) -> SparseDisk:
    """A twoGbMaxExtentSparse image over a `make_parent`; all tables are there."""
    make_parent(folder, size, seed=seed)
    path = folder / "disk.vmdk"
    fdstash.create(
        path,
        "vmdk",
        size,
        subformat="twoGbMaxExtentSparse",
        extent_size=extent_size,
        zeroed_grain=zeroed_grain,
        backing_file=_PARENT,
    )
    return SparseDisk(path, tuple(sorted(folder.glob("disk-s*.vmdk"))))


def make_cowd(
    folder: Path, extents: Sequence[tuple[int, int]], *, seed: int | None = 1
) -> SparseDisk:
    """A vmfsSparse image of (sectors, sectors of a grain) that has no table yet.

    Over a `make_parent` unless `seed` is None.
    """
    size = sum(sectors for sectors, _ in extents) * SECTOR
    names = [folder / f"disk-{number}-delta.vmdk" for number in range(len(extents))]
    lines = []
    for path, (sectors, grain) in zip(names, extents, strict=True):
        tables = CowdHeader(sectors, grain).gt_count
        end = CowdHeader(sectors, grain, gd_entries=tables).gd_end
        header = CowdHeader(sectors, grain, gd_entries=tables, free_sector=end)
        path.write_bytes(header.encode().ljust(end * SECTOR, b"\0"))
        lines.append(f'RW {sectors} VMFSSPARSE "{path.name}"')
    cid, hint = "ffffffff", ""
    if seed is not None:
        with fdstash.open(make_parent(folder, size, seed=seed)) as parent:
            cid = f"{parent.format_info['cid']:08x}"
        hint = f'parentFileNameHint="{_PARENT}"\n'
    path = folder / "disk.vmdk"
    path.write_text(
        f"# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID={cid}\n{hint}"
        f'createType="vmfsSparse"\n\n' + "\n".join(lines) + "\n"
    )
    return SparseDisk(path, tuple(names))
