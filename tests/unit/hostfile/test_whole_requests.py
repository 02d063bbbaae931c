"""A request is done whole, whatever the kernel or others do meanwhile."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import threading
from functools import partial

import pytest

from tests.support.disks import noise
from tests.support.faultshim import SHORT, FaultShim
from tests.support.ground import DIRECT_PLACES, PLACES, Ground, at, directness, image_at
from tests.support.kernel import is_direct
from tests.support.refusals import failed_with
from tests.support.tier import count
from tests.support.uncured import running

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]


@pytest.mark.preload
@at([PLACES[0], PLACES[1], PLACES[6]])
@directness
@pytest.mark.parametrize("action", [SHORT, errno.EINTR], ids=["short", "EINTR"])
def test_short_and_interrupted_calls_are_made_whole(
    ground: Ground, shim: FaultShim, action: int, *, direct: bool
) -> None:
    ground.fill(noise(65536))
    model = bytearray(ground.content())
    requests = [(0, 16384), (4096, 32768)]
    if not direct or action != SHORT:
        # A transfer past the cache is short by whole sectors only.
        requests += [(512, 8192), (1, 10_000), (4095, 3), (5000, 700), (12_288, 4096)]
    with image_at(ground, "none" if direct else "writeback") as image:
        fired = 0
        for number, ((offset, length), position) in enumerate(
            itertools.product(requests, range(4))
        ):
            with shim.fault("pread", position, action, times=2) as met:
                assert image.pread(length, offset) == model[offset : offset + length]
            fired += met.times
            data = noise(length, number)
            with shim.fault("pwrite", position, action, times=2) as met:
                assert image.pwrite(data, offset) == length
            model[offset : offset + length] = data
            fired += met.times
            buffers = [bytearray(length // 3), bytearray(length - length // 3)]
            with shim.fault("pread", position, action, times=2) as met:
                assert image.preadv(buffers, offset) == length
            assert b"".join(buffers) == data
            with shim.fault("pwrite", position, action, times=2):
                assert image.pwritev(buffers, offset) == length
        assert fired > len(requests)
        assert image.pread(len(model), 0) == model
    assert ground.content() == model


@at([PLACES[0], PLACES[1], PLACES[2]])
@directness
def test_a_file_that_was_cut_behind_our_back_is_an_error(ground: Ground, *, direct: bool) -> None:
    """Never zeros, and never bytes that are not there."""
    ground.fill(noise(65536))
    with image_at(ground, "none" if direct else "writeback") as image:
        for size in (40_000, 8192, 8191, 0):
            os.truncate(ground.path, size)
            assert image.size == 65536
            for offset, length in ((size, 1), (size - 1, 2), (0, 65536), (60_000, 4096)):
                if offset < 0:
                    continue
                assert failed_with(partial(image.pread, length, offset)) == errno.EIO
            assert image.pread(size // 2, 0) == noise(65536)[: size // 2]


@at([PLACES[0], PLACES[2], PLACES[6]])
@directness
def test_a_small_write_never_undoes_a_large_one_that_overlaps(
    ground: Ground, *, direct: bool
) -> None:
    """Three bytes near each end of two pages, and whole pages over them, all the time.

    Seen with ranges that exclude nobody, direct: pages of an older write within a second.
    """
    ground.fill(bytes(8192))
    wrong: list[tuple[int, int]] = []
    turns = itertools.count(1)
    rng = random.Random(3)
    with image_at(ground, "none" if direct else "writeback") as image:

        def pages() -> None:
            fill = next(turns) % 255 + 1
            image.pwrite(bytes([fill]) * 8192, 0)
            found = set(image.pread(8192, 0)[100:8000])
            if found != {fill}:
                wrong.append((fill, len(found)))

        def few() -> None:
            image.pwrite(b"abc", rng.choice((1, 70, 8100, 8189)))

        with running(pages, few, few):
            for _ in range(count(200)):
                threading.Event().wait(0.02)
    assert not wrong


@at(DIRECT_PLACES)
def test_a_descriptor_that_becomes_direct_under_a_request_is_read_through_a_bounce(
    ground: Ground,
) -> None:
    """A request prepared for the page cache can reach the kernel after the switch."""
    ground.fill(noise(65536))
    data = ground.content()
    file = ground.open(direct=False)
    flags = fcntl.fcntl(file.fd, fcntl.F_GETFL)
    fcntl.fcntl(file.fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    assert is_direct(file.fd)
    for offset, length in ((1, 3), (511, 4097), (0, 4096), (4096, 65536 - 4096)):
        assert file.pread(length, offset) == data[offset : offset + length]
        assert file.pwrite(data[offset : offset + length], offset) == length
    file.release()
    assert ground.content() == data
