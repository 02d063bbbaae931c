"""A raw image and a flat VMDK against a model of their bytes, on tmpfs and on ext4."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.disks import ExtentSpec, make_flat, make_raw
from tests.support.machine import around, run_machine
from tests.support.reopen_machine import ImageMachine
from tests.support.tier import FULL

#: Sizes of no whole pages, one extent that starts inside its file.
_EXTENTS = tuple(
    ExtentSpec("RW", sectors, name=f"extent-{number}.bin", start=start)
    for number, (sectors, start) in enumerate([(37, 0), (129, 0), (91, 3), (25, 0), (61, 0)])
)
_RAW_SIZE = 100_003


class PlainMachine(ImageMachine):
    """`layout` is raw or vmdk."""

    offsets = around(
        [0, 511, 512, 4095, 4096, *(sum(e.length for e in _EXTENTS[:n]) for n in range(1, 6))],
        1 << 18,
    )

    def __init__(self, layout: str, root: Path) -> None:
        self.layout = layout
        super().__init__(root)

    def make(self, home: Path) -> tuple[Path, bytearray]:
        if self.layout == "raw":
            path = make_raw(home, _RAW_SIZE)
            return path, bytearray(path.read_bytes())
        disk = make_flat(home, _EXTENTS, create_type="monolithicFlat")
        self.others = [extent.name or "" for extent in _EXTENTS]
        return disk.path, bytearray(disk.guest_bytes())


@pytest.mark.parametrize("layout", ["raw", "vmdk"])
def test_the_image_is_its_model_on_tmpfs(layout: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        run_machine(partial(PlainMachine, layout, Path(folder)), 1000 if FULL else 20)


@pytest.mark.parametrize("layout", ["raw", "vmdk"])
def test_the_image_is_its_model_on_ext4(layout: str, ext4_mount: Callable[..., Path]) -> None:
    run_machine(partial(PlainMachine, layout, ext4_mount()), 500 if FULL else 10)
