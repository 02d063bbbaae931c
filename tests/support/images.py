"""What most tests of an image start from: a raw image, a flat VMDK, an empty stash."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fdstash import FDStash, Image
from tests.support.disks import FlatDisk, make_flat, make_raw

__all__ = ["CACHES", "SIZE", "flat", "raw", "read_all", "stash"]

SIZE = 1 << 16
"""Of the raw image, bytes."""

CACHES = ["writeback", "none", "writethrough", "directsync", "unsafe"]


def read_all(image: Image) -> bytes:
    return image.pread(image.size, 0)


@pytest.fixture
def stash() -> Iterator[FDStash]:
    with FDStash() as made:
        yield made


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw image of `SIZE` bytes, `noise(SIZE, 1)`."""
    return make_raw(tmp_path, SIZE)


@pytest.fixture
def flat(tmp_path: Path) -> FlatDisk:
    """A flat VMDK of five files, with extents that lie at odd places."""
    return make_flat(tmp_path)
