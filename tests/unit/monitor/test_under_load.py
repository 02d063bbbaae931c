"""Reopens by the monitor while clients of its NBD server never stop."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from fdstash.export import NbdServer
from fdstash.monitor.nodes import ImageNode
from tests.support.chains import make_chain
from tests.support.monitor import Client, daemon_in, file_options, node, reopen
from tests.support.nbd_load import BLOCK, Load
from tests.support.tier import count

pytestmark = pytest.mark.threads


def test_an_export_is_served_through_changes_of_cache_and_of_what_is_below(folder: Path) -> None:
    chain = make_chain(folder)
    copy = folder / "copy"
    shutil.copytree(folder, copy, ignore=lambda _, names: {"copy"} & set(names))
    copied = copy / chain.paths[1].name
    below: list[dict[str, Any]] = [
        {"backing": None},
        {"cache": {"direct": True}},
        {"backing": {"driver": "vmdk", "file": file_options(chain.paths[1])}},
        {"backing": {"driver": "vmdk", "file": file_options(copied)}, "cache": {"direct": True}},
    ]
    with daemon_in(folder, server=NbdServer) as (daemon, path), Client(path) as client:
        file = file_options(chain.top)
        client.execute("blockdev-add", driver="vmdk", node_name="top", file=file)
        found = daemon.table.get("top")
        assert isinstance(found, ImageNode)
        image = found.image
        blocks = image.size // BLOCK
        for block in range(1, blocks - 1):
            image.pwrite(bytes(BLOCK), block * BLOCK)
        where = str(folder / "nbd")
        client.execute("nbd-server-start", addr={"type": "unix", "data": {"path": where}})
        client.execute(
            "block-export-add", type="nbd", id="e", name="", node_name="top", writable=True
        )
        loads = [Load(where, range(first, blocks - 1, 2), first) for first in (1, 2)]
        for load in loads:
            load.start()
        for load in loads:
            load.wait_for_more()
        for number in range(count(400)):
            reopen(client, node("top", file, "vmdk", **below[number % 4]))
            alone = number % 4 < 2
            assert (image.backing is None) is alone
            # What no client writes: by itself the image has nothing there.
            assert image.pread(BLOCK, 0) == (bytes(BLOCK) if alone else chain.guest[:BLOCK])
            time.sleep(0.002)
        seen = [load.requests for load in loads]
        for load, before in zip(loads, seen, strict=True):
            load.wait_for_more(before)
        for load in loads:
            load.stop()
            for block, value in load.model.items():
                assert image.pread(BLOCK, block * BLOCK) == bytes([value]) * BLOCK
