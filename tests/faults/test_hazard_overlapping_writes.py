"""Writes of the same page, in flight across a switch of O_DIRECT, make no flush fail.

A direct write that the ring has in flight holds no lock of the file. Another write of its page,
through the page cache, leaves it dirty; the kernel, which is to drop it when the first ends,
cannot, and says EIO to the next fsync, in time for a guest to remount its disk read-only.
"""

from __future__ import annotations

import array
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fdstash
from tests.support.disks import make_raw
from tests.support.tier import count

pytestmark = [
    pytest.mark.usefixtures("no_descriptor_leaks"),
    pytest.mark.root,
    pytest.mark.threads,
]

PAGE = 4096
PAGES = 256
AT_ONCE = 32
WRITES = 2048  #: of a call
SWITCHES = count(20_000)


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_a_page_written_twice_at_once_across_a_switch_fails_no_flush(
    ext4_mount: Callable[..., Path], engine: str
) -> None:
    path = make_raw(ext4_mount(), PAGE * PAGES)
    chosen = random.Random(1)
    data = fdstash.AlignedBuffer(WRITES * PAGE)
    over = threading.Event()

    def write(image: fdstash.Image) -> None:
        pages = array.array("Q", (chosen.randrange(PAGES) * PAGE for _ in range(WRITES)))
        with image.queue(AT_ONCE, engine=engine) as queue:
            while not over.is_set():
                assert queue.write_many(pages, PAGE, data) == WRITES * PAGE

    with fdstash.open(path, "r+", format="raw") as image, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, image)
        try:
            for number in range(SWITCHES):
                image.reopen(cache=("none", "writeback")[number % 2])
                image.flush()
        finally:
            over.set()
        writing.result()
