"""Zeros and holes, on hosts that can make them and on others."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fdstash import ImageIOError
from tests.support.disks import noise
from tests.support.faultshim import FaultShim
from tests.support.ground import FILES, PLACES, Ground, at, directness, image_at

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]


def blocks(path: Path) -> int:
    """Bytes in use."""
    return path.stat().st_blocks * 512


@at(FILES)
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_unmap_gives_space_back_and_plain_zero_keeps_it(ground: Ground, cache: str) -> None:
    if cache == "none" and ground.place.name == "tmpfs":
        cache = "writethrough"
    ground.fill(noise(65536))
    with image_at(ground, cache) as image:
        image.flush()
        full = blocks(ground.path)
        image.zero(32768, 4096)
        assert blocks(ground.path) >= full
        image.zero(32768, 4096, unmap=True)
        image.flush()
        assert blocks(ground.path) <= full - 32768
        assert image.pread(65536, 0) == noise(65536)[:4096] + bytes(32768) + noise(65536)[36864:]
        image.trim(8192, 49152)
        image.flush()
        assert blocks(ground.path) <= full - 32768 - 8192
        assert ground.path.stat().st_size == 65536


@at(FILES)
def test_parts_of_pages_are_zeroed_and_not_trimmed(ground: Ground) -> None:
    ground.fill(noise(65536))
    with image_at(ground) as image:
        image.trim(4096, 100)
        image.trim(100, 4096)
        assert image.pread(65536, 0) == noise(65536), "no whole page lies in these"
        image.trim(9000, 4000)
        data = image.pread(65536, 0)
        assert data[:4096] == noise(65536)[:4096]
        assert data[12288:] == noise(65536)[12288:]
        for unmap in (False, True):
            ground.fill(noise(65536))
            image.zero(9000, 4000, unmap=unmap)
            assert image.pread(65536, 0) == noise(65536)[:4000] + bytes(9000) + noise(65536)[13000:]


@at([place for place in PLACES if place.is_device])
def test_a_trim_never_shows_what_was_there_before_the_last_write(ground: Ground) -> None:
    """A device drops cached pages before it finds that it cannot free them."""
    ground.fill(noise(65536))
    with image_at(ground) as image:
        image.zero(4096, 8192)  # after which a loop device over tmpfs can free nothing
        image.flush()
        image.pwrite(b"new", 100)
        written = image.pread(4096, 0)
        image.trim(4096, 0)
        assert image.pread(4096, 0) in (written, bytes(4096))
        assert image.pread(4096, 4096) == noise(65536)[4096:8192]


@pytest.mark.preload
@at([PLACES[0], PLACES[5]])
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENODEV, errno.EINVAL])
@directness
def test_where_the_host_cannot_zero_zeros_are_written_and_trims_ignored(
    ground: Ground, shim: FaultShim, code: int, *, direct: bool
) -> None:
    ground.fill(noise(65536))
    with image_at(ground, "none" if direct else "writeback") as image:
        before = bytearray(image.pread(65536, 0))
        for unmap in (False, True):
            with shim.fault("fallocate", 0, code, times=10) as met:
                image.zero(20_000, 5000, unmap=unmap)
            assert met.times == 1 + unmap
            before[5000:25_000] = bytes(20_000)
            assert image.pread(65536, 0) == before
        with shim.fault("fallocate", 0, code, times=10) as met:
            image.trim(16384, 28672)
        assert met.fired
        assert image.pread(65536, 0) == before


@pytest.mark.preload
@at([PLACES[0]])
def test_an_error_of_the_host_is_no_lack_of_ability(ground: Ground, shim: FaultShim) -> None:
    ground.fill(noise(65536))
    with image_at(ground) as image:
        for code in (errno.EIO, errno.ENOSPC):
            with shim.fault("fallocate", 0, code), pytest.raises(ImageIOError) as caught:
                image.zero(8192, 0)
            assert caught.value.errno == code
            with shim.fault("fallocate", 0, code), pytest.raises(ImageIOError):
                image.trim(8192, 0)
        with shim.fault("fallocate", 0, errno.EINTR):
            image.zero(8192, 0)
        assert image.pread(8192, 0) == bytes(8192)
