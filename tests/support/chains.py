"""Chains of VMDKs as VMware lays them out: a flat base, and a delta for each snapshot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.disks import noise
from tests.support.grain_files import MAKERS, Contents, descriptor

__all__ = [
    "CONTENT",
    "GRAIN",
    "GRAINS",
    "SIZE",
    "Chain",
    "make_base",
    "make_chain",
    "make_child",
    "over",
]

GRAIN = 4096
GRAINS = 32
SIZE = GRAIN * GRAINS
#: The grains that each snapshot of `make_chain` has.
CONTENT: tuple[Contents, ...] = (
    {1: noise(GRAIN, 11), 2: noise(GRAIN, 12), 9: noise(GRAIN, 13)},
    {2: noise(GRAIN, 22), 20: noise(GRAIN, 23)},
)
_CREATE_TYPES = {
    "SPARSE": "twoGbMaxExtentSparse",
    "VMFSSPARSE": "vmfsSparse",
    "SESPARSE": "seSparse",
}


class Chain(NamedTuple):
    """Paths of descriptors, the base first, and what each image reads as."""

    paths: tuple[Path, ...]
    guests: tuple[bytes, ...]

    @property
    def top(self) -> Path:
        return self.paths[-1]

    @property
    def guest(self) -> bytes:
        return self.guests[-1]

    @property
    def base(self) -> Path:
        return self.paths[0]

    def files(self) -> list[Path]:
        """Every file in the order of `Image.files`: that of the opened image first."""
        found = []
        for number, path in reversed(list(enumerate(self.paths))):
            found += [path, path.with_name(f"{path.stem}-{'delta' if number else 'flat'}.vmdk")]
        return found


def make_base(path: Path, data: bytes, *, cid: int = 0xB0) -> bytes:
    """A base in one flat extent beside it; returns what it reads as."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = path.with_name(f"{path.stem}-flat.vmdk")
    flat.write_bytes(data)
    line = f'RW {len(data) // 512} VMFS "{flat.name}"'
    path.write_text(descriptor(line, cid=cid, create_type="vmfs"))
    return data


def make_child(
    path: Path,
    hint: str,
    content: Contents,
    *,
    cid: int,
    parent_cid: int,
    kind: str = "VMFSSPARSE",
    grains: int = GRAINS,
) -> None:
    """A delta in a descriptor and a file of grains beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    delta = path.with_name(f"{path.stem}-delta.vmdk")
    delta.write_bytes(MAKERS[kind](grains, content))
    path.write_text(
        descriptor(
            f'RW {grains * GRAIN // 512} {kind} "{delta.name}"',
            cid=cid,
            parent_cid=parent_cid,
            hint=hint,
            create_type=_CREATE_TYPES[kind],
        )
    )


def over(guest: bytes, content: Contents, size: int = SIZE) -> bytes:
    """What a child of an image that reads as `guest` reads as."""
    found = bytearray(guest[:size].ljust(size, b"\0"))
    for number, data in content.items():
        assert isinstance(data, bytes)
        found[number * GRAIN : number * GRAIN + len(data)] = data
    return bytes(found)


def make_chain(
    folder: Path,
    *,
    kind: str = "VMFSSPARSE",
    names: tuple[str, ...] = ("vm.vmdk", "vm-000001.vmdk", "vm-000002.vmdk"),
    hints: Mapping[int, str] | None = None,
    seed: int = 1,
) -> Chain:
    """A base and a snapshot for each further name, which may be in folders.

    `hints`: what images call their parents, by number, where that is not the way to it.
    """
    paths = tuple(folder / name for name in names)
    guests = [make_base(paths[0], noise(SIZE, seed))]
    for number, path in enumerate(paths[1:], start=1):
        below = paths[number - 1]
        hint = (hints or {}).get(number, os.path.relpath(below, path.parent))
        content = CONTENT[(number - 1) % len(CONTENT)]
        make_child(path, hint, content, cid=0xB0 + number, parent_cid=0xB0 + number - 1, kind=kind)
        guests.append(over(guests[-1], content))
    return Chain(paths, tuple(guests))
