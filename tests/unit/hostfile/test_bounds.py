"""The end of a file, and files that are not to be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fdstash import ImageIOError
from fdstash.hostfile import HostFile
from fdstash.opening import close_owned
from tests.support.disks import noise
from tests.support.ground import FILES, PLACES, Ground, at, directness, dup_of, image_at
from tests.support.refusals import failed_with

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]


@at(PLACES)
@directness
def test_a_write_beyond_the_end_writes_nothing(ground: Ground, *, direct: bool) -> None:
    direct = direct and ground.place.name != "tmpfs"
    ground.fill(noise(20_000))
    before = ground.content()
    with image_at(ground, "none" if direct else "writeback") as image:
        size = image.size
        for offset, length in (
            (size, 1),
            (size - 1, 2),
            (size - 4096, 8192),
            (size + 4096, 4096),
            (0, size + 1),
            ((1 << 62), 512),
        ):
            for call in (
                lambda offset=offset, length=length: image.pwrite(bytes(length), offset),
                lambda offset=offset, length=length: image.zero(length, offset),
                lambda offset=offset, length=length: image.zero(length, offset, unmap=True),
                lambda offset=offset, length=length: image.trim(length, offset),
            ):
                assert failed_with(call) == errno.ENOSPC
    assert ground.content() == before


@at(PLACES)
def test_a_read_only_image_is_never_written(ground: Ground) -> None:
    ground.fill(noise(20_000))
    before = ground.content()
    with image_at(ground, mode="r") as image:
        for call in (
            lambda: image.pwrite(b"x", 0),
            lambda: image.pwritev([b"x" * 4096], 0),
            lambda: image.zero(4096, 0),
            lambda: image.trim(4096, 0),
            lambda: image.resize(100),
        ):
            assert failed_with(call) == errno.EBADF
        image.flush()
    assert ground.content() == before


@at(FILES)
def test_resize_grows_with_zeros_and_shrinks_in_every_cache_mode(ground: Ground) -> None:
    ground.fill(noise(20_000))
    with image_at(ground) as image:
        for cache in ("writeback", "none", "directsync"):
            if ground.place.name != "tmpfs":
                image.reopen(cache=cache)
            for size in (8191, 8192, 100_001, 0, 65_536, 20_000):
                image.resize(size)
                assert image.size == ground.path.stat().st_size == size
                if size:
                    image.pwrite(b"end", size - 3)
                    assert image.pread(100, size - 3) == b"end"
                with pytest.raises(ImageIOError):
                    image.pwrite(b"x", size)
        assert image.pread(19_997, 0).count(0) >= 19_900


def test_what_a_file_refuses_stays_the_callers(tmp_path: Path) -> None:
    fd = dup_of(tmp_path, os.O_RDONLY)
    assert failed_with(lambda: HostFile(fd, "folder")) == errno.EINVAL
    assert close_owned(fd) == 0
