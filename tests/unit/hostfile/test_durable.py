"""What is durable when a call returns has reached the device."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fdstash import Image, ImageIOError
from tests.support.disks import noise
from tests.support.faultshim import FaultShim
from tests.support.ground import PLACES, Ground, image_at
from tests.support.hosts import Hosts

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]


@pytest.fixture
def durable_ground(hosts: Hosts, tmp_path: Path) -> Iterator[Ground]:
    made = Ground(hosts, PLACES[0], tmp_path)
    yield made
    made.close()


def reached_the_device(ground: Ground, marker: bytes) -> bool:
    """Whether the bytes are in the file behind the loop device by now."""
    assert ground.file_system is not None
    with (
        open(ground.file_system.backing, "rb") as backing,
        mmap.mmap(backing.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        return view.find(marker) >= 0


WAYS: dict[str, tuple[str, bool, Callable[[Image, bytes], object]]] = {
    "fua": ("writeback", True, lambda i, m: i.pwrite(m, 700, fua=True)),
    "fua of many buffers": ("writeback", True, lambda i, m: i.pwritev([m[:9], m[9:]], 7, fua=True)),
    "fua of a page": ("writeback", True, lambda i, m: i.pwrite(m * 128, 4096, fua=True)),
    "writethrough": ("writethrough", True, lambda i, m: i.pwrite(m, 700)),
    "writethrough of many": ("writethrough", True, lambda i, m: i.pwritev([m[:5], m[5:]], 700)),
    "directsync": ("directsync", True, lambda i, m: i.pwrite(m, 700)),
    "unsafe with fua": ("unsafe", True, lambda i, m: i.pwrite(m, 700, fua=True)),
    "flush": ("writeback", True, lambda i, m: (i.pwrite(m, 700), i.flush())),
    "writeback": ("writeback", False, lambda i, m: i.pwrite(m, 700)),
    "unsafe": ("unsafe", False, lambda i, m: i.pwrite(m, 700)),
    "unsafe and flush": ("unsafe", False, lambda i, m: (i.pwrite(m, 700), i.flush())),
}


@pytest.mark.parametrize("name", WAYS)
def test_what_is_durable_has_reached_the_device(durable_ground: Ground, name: str) -> None:
    """The last three have not: the kernel writes back after seconds, and the look comes at once."""
    cache, durable, write = WAYS[name]
    durable_ground.fill(noise(65536))
    marker = os.urandom(32)
    with image_at(durable_ground, cache) as image:
        if cache == "unsafe":
            image.reopen(cache="writeback")
            image.flush()
            image.reopen(cache=cache)
        image.flush()
        write(image, marker)
        assert reached_the_device(durable_ground, marker) == durable
        assert image.pread(65536, 0).find(marker) >= 0


def test_a_reopen_to_writethrough_makes_earlier_writes_durable(durable_ground: Ground) -> None:
    """A guest that never flushes relies on every write from then on, those before included."""
    durable_ground.fill(noise(65536))
    marker = os.urandom(32)
    with image_at(durable_ground) as image:
        image.pwrite(marker, 700)
        assert not reached_the_device(durable_ground, marker)
        image.reopen(cache="writethrough")
        assert reached_the_device(durable_ground, marker)


@pytest.mark.preload
def test_without_rwf_dsync_a_sync_follows_the_write(
    durable_ground: Ground, shim: FaultShim
) -> None:
    durable_ground.fill(noise(65536))
    marker = os.urandom(32)
    with image_at(durable_ground) as image:
        image.flush()
        with shim.fault("pwrite", 0, errno.EOPNOTSUPP) as met:
            image.pwrite(marker, 700, fua=True)
        assert met.fired
        assert met.counts["fdatasync"] == 1
        assert reached_the_device(durable_ground, marker)
        shim.arm("pwrite", 0, errno.EOPNOTSUPP)
        shim.also("fdatasync", 0, errno.EIO)
        with pytest.raises(ImageIOError) as caught:
            image.pwrite(marker, 700, fua=True)
        shim.disarm()
        assert caught.value.errno == errno.EIO
