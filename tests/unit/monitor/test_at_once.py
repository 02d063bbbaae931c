"""Many clients give any commands for the same nodes at once: nothing is lost, held up or leaked."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdstash.monitor.nodes import ImageNode
from tests.support.disks import FlatDisk, make_flat, make_raw
from tests.support.monitor import Client, CommandFailed, daemon_in, file_options
from tests.support.tier import count

pytestmark = pytest.mark.threads

SIZE = 1 << 16


class Chaos:
    """One client, and what it may do."""

    def __init__(self, path: Path, flat: FlatDisk, raw: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.client = Client(path, timeout=60)
        self.flat, self.raw = flat, raw
        self.done = 0

    def run(self, times: int) -> None:
        orders: list[Callable[[], Any]] = [
            self.reopen, self.reopen, self.host_cache, self.query, self.add_and_delete,
            self.file_node, self.pass_in, self.export, self.move,
        ]  # fmt: skip
        with self.client:
            for _ in range(times):
                with contextlib.suppress(CommandFailed):
                    self.chance.choice(orders)()
                    self.done += 1

    def options(self, **more: Any) -> dict[str, Any]:
        direct = {"cache": {"direct": self.chance.random() < 0.5}}
        return {"driver": "vmdk", "node-name": "vm", **direct, **more}

    def reopen(self) -> None:
        options = self.options(file=file_options(self.flat.path))
        options["read-only"] = self.chance.random() < 0.3
        other = {"driver": "raw", "node-name": "disk", "file": file_options(self.raw)}
        several = [options, other] if self.chance.random() < 0.5 else [options]
        self.client.execute("blockdev-reopen", options=several)

    def move(self) -> None:
        copy = self.flat.path.parents[1] / "copy" / self.flat.path.name
        target = self.chance.choice([copy, self.flat.path])
        self.client.execute("blockdev-reopen", options=[self.options(file=file_options(target))])

    def host_cache(self) -> None:
        name = self.chance.choice(["vm", "disk"])
        use = self.chance.random() < 0.5
        self.client.execute("block_set_hostcache", node_name=name, hostcache=use)

    def query(self) -> None:
        self.client.nodes()
        self.client.execute("query-block")

    def add_and_delete(self) -> None:
        self.client.execute("blockdev-del", node_name="disk")
        file = file_options(self.raw)
        self.client.execute("blockdev-add", driver="raw", node_name="disk", file=file)

    def file_node(self) -> None:
        self.client.execute("blockdev-add", driver="file", node_name="file", filename=str(self.raw))
        self.client.execute("blockdev-del", node_name="disk")
        self.client.execute("blockdev-add", driver="raw", node_name="disk", file="file")
        self.client.execute("blockdev-del", node_name="disk")
        self.client.execute("blockdev-del", node_name="file")
        file = file_options(self.raw)
        self.client.execute("blockdev-add", driver="raw", node_name="disk", file=file)

    def pass_in(self) -> None:
        for path in self.flat.files:
            self.client.getfd(str(path), path)
        added = self.client.add_fd(self.raw, opaque=str(self.raw))
        self.reopen()
        self.client.execute("remove-fd", fdset_id=added["fdset-id"])

    def export(self) -> None:
        address = {"type": "unix", "data": {"path": str(self.raw.with_name("nbd"))}}
        with contextlib.suppress(CommandFailed):
            self.client.execute("nbd-server-start", addr=address)
        self.client.execute("block-export-add", type="nbd", id="e", node_name="disk")
        self.client.execute("block-export-del", id="e")
        self.client.execute("nbd-server-stop")


def test_any_commands_at_once_leave_every_node_whole(folder: Path) -> None:
    flat, raw = make_flat(folder / "flat"), make_raw(folder, SIZE)
    shutil.copytree(flat.path.parent, folder / "copy")
    content = flat.guest_bytes()
    with daemon_in(folder) as (daemon, path), Client(path, timeout=60) as client:
        for name, driver, file in (("vm", "vmdk", flat.path), ("disk", "raw", raw)):
            client.execute("blockdev-add", driver=driver, node_name=name, file=file_options(file))
        many = [Chaos(path, flat, raw, seed) for seed in range(4)]
        threads = [threading.Thread(target=each.run, args=(count(2000),)) for each in many]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert "vm" in client.nodes()
        for thread in threads:
            thread.join()
        assert sum(each.done for each in many) > count(2000)
        node = daemon.table.get("vm")
        assert isinstance(node, ImageNode)
        assert node.image.pread(flat.size, 0) == content
        told = client.nodes()
        for child in told["vm"]["children"]:
            assert told[child["node-name"]]["ro"] is (node.image.mode == "r")
            assert told[child["node-name"]]["cache"]["direct"] is (node.image.cache == "none")
