"""Images for loads that are stopped at any moment, and what must hold of them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import fdstash
from tests.support import toy_format
from tests.support.qemu_tools import qemu_img
from tests.support.sparse_disks import make_cowd, make_delta
from tests.support.sparse_files import sparse_trouble
from tests.support.steps import Model

__all__ = ["KINDS", "check_after", "content"]

SIZE = 2 << 20
_EXTENT = 640 << 10  # ten grains


def _created(**options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "disk.vmdk"
        fdstash.create(path, "vmdk", SIZE, **options)
        return path

    return make


#: By name, what makes the image in a folder.
KINDS: Mapping[str, Callable[[Path], Path]] = {
    "toy": lambda folder: toy_format.make(folder / "disk.toy", SIZE),
    "monolithicSparse": _created(subformat="monolithicSparse"),
    "zeroed_grain": _created(subformat="monolithicSparse", zeroed_grain=True),
    "twoGbMaxExtentSparse": _created(subformat="twoGbMaxExtentSparse", extent_size=_EXTENT),
    "delta": lambda folder: make_delta(folder, SIZE, _EXTENT).path,
    "vmfsSparse": lambda folder: make_cowd(folder, [(3000, 8), (1096, 1)]).path,
}


def content(path: Path) -> bytes:
    with fdstash.open(path) as image:
        return image.pread(image.size, 0)


def check_after(path: Path, model: Model) -> None:
    """What was flushed is there, no grain is shared, copies agree or can be made to, life goes on.

    Raises `AssertionError`. Changes the image.
    """
    found = content(path)
    wrong = model.wrong(found)
    assert not wrong, f"{len(wrong)} sectors are wrong, the first at {wrong[0]}"
    if path.suffix == ".vmdk":
        _check_vmdk(path, found)
    with fdstash.open(path, "r+") as image:
        for offset in range(0, image.size, image.size // 7 // 512 * 512):
            image.pwrite(b"after all", offset)
        image.flush()
        found = image.pread(image.size, 0)
    assert content(path) == found


def _check_vmdk(path: Path, found: bytes) -> None:
    trouble = [each for each in sparse_trouble(path) if "redundant" not in each]
    assert not trouble, trouble
    report = fdstash.check(path, repair=True)
    assert report.clean, report
    trouble = list(sparse_trouble(path))
    assert not trouble, trouble
    assert fdstash.check(path).clean
    ran = qemu_img("check", "-f", "vmdk", path)
    assert ran.status == 0, ran
    assert content(path) == found
