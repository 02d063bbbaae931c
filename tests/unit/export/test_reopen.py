"""Reopens of an image whose clients never stop."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fdstash
from fdstash import Image
from fdstash.export import NbdServer
from tests.support.nbd_client import FLUSH, READ, WRITE, Client
from tests.support.nbd_load import BLOCK, Load
from tests.support.tier import count

pytestmark = pytest.mark.threads


def under_load(image: Image, server: NbdServer, where: str, change: Callable[[int], None]) -> None:
    server.add("e", image, writable=True)
    blocks = image.size // BLOCK
    for block in range(blocks):
        image.pwrite(bytes(BLOCK), block * BLOCK)
    loads = [Load(where, range(first, blocks, 2), first) for first in range(2)]
    for load in loads:
        load.start()
    for number in range(count(200)):
        change(number)
        time.sleep(0.002)
    seen = [load.requests for load in loads]
    for load, before in zip(loads, seen, strict=True):
        load.wait_for_more(before)
    for load in loads:
        load.stop()
        for block, value in load.model.items():
            assert image.pread(BLOCK, block * BLOCK) == bytes([value]) * BLOCK


def test_the_cache_mode_changes_under_load(image: Image, server: NbdServer, where: str) -> None:
    modes = ["none", "writeback", "directsync", "writethrough"]
    under_load(image, server, where, lambda number: image.reopen(cache=modes[number % 4]) and None)


def test_the_path_changes_under_load(raw: Image, server: NbdServer, where: str) -> None:
    folder = Path(raw.files[0].path or "").parent

    def move(number: int) -> None:
        now, then = folder / raw.files[0].name, folder / f"copy-{number % 2}"
        then.touch()
        os.truncate(then, raw.size)
        raw.reopen(path=then, prepare=lambda: shutil.copyfile(now, then))

    under_load(raw, server, where, move)


@pytest.mark.parametrize("written_before", [False, True])
def test_a_held_write_does_not_hold_up_reads_or_other_clients(
    server: NbdServer, raw: Image, where: str, *, written_before: bool
) -> None:
    server.add("e", raw, writable=True)
    entered, release = threading.Event(), threading.Event()

    def prepare() -> None:
        entered.set()
        assert release.wait(20)

    with Client(where) as client, Client(where) as other:
        if written_before:
            client.write(bytes(512), 0)
        reopening = threading.Thread(target=lambda: raw.reopen(mode="r+", prepare=prepare))
        reopening.start()
        try:
            assert entered.wait(20)
            held = [client.send(WRITE, 4096 * n, data=bytes([n]) * 4096) for n in range(1, 20)]
            for _ in range(50):
                assert client.ask(READ, 0, 512).data == bytes(512)
                assert other.ask(READ, 0, 512).data == bytes(512)
        finally:
            release.set()
            reopening.join()
        assert {client.reply().cookie for _ in held} == set(held)
        for n in range(1, 20):
            assert other.read(1, 4096 * n) == bytes([n])


def test_a_sparse_image_is_allocated_over_nbd_and_reopened(
    server: NbdServer, tmp_path: Path, where: str
) -> None:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 64 << 20, subformat="twoGbMaxExtentSparse")
    chance = random.Random(5)
    model = {}
    with fdstash.open(path, "r+") as image:
        server.add("e", image, writable=True)
        with Client(where) as one, Client(where) as two:
            for number in range(count(600)):
                offset = chance.randrange((64 << 20) // BLOCK) * BLOCK
                model[offset] = chance.randbytes(BLOCK)
                chance.choice([one, two]).write(model[offset], offset)
                if number % 10 == 9:
                    image.reopen(cache=chance.choice(["none", "writeback"]))
            assert one.ask(FLUSH).error == 0
            for offset, data in model.items():
                assert two.read(BLOCK, offset) == data
        server.close()
    with fdstash.open(path) as again:
        assert all(again.pread(BLOCK, offset) == data for offset, data in model.items())
