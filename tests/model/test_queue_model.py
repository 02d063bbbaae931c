"""The queue of an image against a model of the image's bytes: every engine, every kind of map."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fdstash
from fdstash.queue import ENGINES
from tests.support.disks import SECTOR, ExtentSpec, make_flat, make_raw, noise
from tests.support.grain_tables import assert_tables_are_sound
from tests.support.machine import around, run_machine
from tests.support.qemu_tools import qemu_img
from tests.support.queue_machine import QueueMachine
from tests.support.tier import FULL

#: A sanitizer makes everything slow, and looks at each step.
RUNS = 200 if FULL else 2 if os.environ.get("FDSTASH_SANITIZER") else 5

_GRAIN = 64 << 10
_RAW = 200_003
#: Forty extents, most of no whole pages; every seventh begins inside its file.
_EXTENTS = tuple(
    ExtentSpec(
        "RW", number * 11 % 37 + 1, name=f"extent-{number:02}.bin", start=3 * (number % 7 == 6)
    )
    for number in range(40)
)
_SPARSE = 2 * (1 << 20) + 5 * SECTOR
_EACH = 5 * _GRAIN


class Kind(NamedTuple):
    """An image; `make` puts it into a folder and returns its path and bytes."""

    layout: str
    make: Callable[[Path], tuple[Path, bytearray]]
    edges: tuple[int, ...]
    others: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()  #: files of grains


def _raw(home: Path) -> tuple[Path, bytearray]:
    path = make_raw(home, _RAW)
    return path, bytearray(path.read_bytes())


def _flat(home: Path) -> tuple[Path, bytearray]:
    disk = make_flat(home, _EXTENTS, create_type="monolithicFlat")
    return disk.path, bytearray(disk.guest_bytes())


def _sparse(home: Path, **options: Any) -> tuple[Path, bytearray]:
    path = home / "disk.vmdk"
    fdstash.create(path, "vmdk", _SPARSE, **options)
    model = bytearray(_SPARSE)
    with fdstash.open(path, "r+") as image:
        for offset in (0, 3 * _GRAIN + 100, _EACH - 1000):
            model[offset : offset + 2000] = noise(2000, offset)
            image.pwrite(noise(2000, offset), offset)
    return path, model


_GRAINS = tuple(range(0, _SPARSE, _GRAIN))
KINDS: Mapping[str, Kind] = {
    "raw": Kind("raw", _raw, (0, 4096, 65536, _RAW)),
    "flat": Kind(
        "vmdk",
        _flat,
        tuple(sum(extent.length for extent in _EXTENTS[:n]) for n in range(41)),
        tuple(extent.name or "" for extent in _EXTENTS),
    ),
    "monolithicSparse": Kind(
        "vmdk", partial(_sparse, subformat="monolithicSparse"), _GRAINS, (), ("disk.vmdk",)
    ),
    "twoGbMaxExtentSparse": Kind(
        "vmdk",
        partial(_sparse, subformat="twoGbMaxExtentSparse", extent_size=_EACH),
        _GRAINS,
        *[tuple(f"disk-s{number:03}.vmdk" for number in range(1, 8))] * 2,
    ),
}


class Machine(QueueMachine):
    """One image of a kind, one engine."""

    def __init__(self, name: str, engine: str, root: Path) -> None:
        self.kind = kind = KINDS[name]
        self.engine = engine
        self.layout, self.others = kind.layout, kind.others
        self.driven = bool(kind.sparse)
        self.offsets = around(kind.edges, kind.edges[-1])
        super().__init__(root)

    def make(self, home: Path) -> tuple[Path, bytearray]:
        return self.kind.make(home)

    def look_at_the_files(self) -> None:
        with fdstash.open(self.path, format=self.layout) as image:
            self.same(image.pread(len(self.model), 0), 0)
        for name in self.kind.sparse:
            assert_tables_are_sound(self.path.parent / name)
        if self.kind.sparse:
            ran = qemu_img("check", "-f", "vmdk", self.path)
            assert ran.status == 0, ran


@pytest.mark.timeout(3600 if FULL else 600)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", KINDS)
def test_the_queue_is_its_model_on_tmpfs(name: str, engine: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        run_machine(partial(Machine, name, engine, Path(folder)), RUNS)


@pytest.mark.parametrize("engine", ["auto", "io_uring"])
@pytest.mark.parametrize("name", ["flat", "monolithicSparse"])
def test_the_queue_is_its_model_on_ext4(
    name: str, engine: str, ext4_mount: Callable[..., Path]
) -> None:
    """Where the ring does not hand requests on, and data may be out of the page cache."""
    run_machine(partial(Machine, name, engine, ext4_mount()), RUNS)
