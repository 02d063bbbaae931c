"""Many clients give any commands for the same nodes at once: nothing is lost, held up or leaked."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash.monitor import Daemon
from fdstash.monitor.nodes import Held, ImageNode
from fdstash.monitor.opener import Opener
from tests.support.disks import FlatDisk, make_flat, make_raw
from tests.support.monitor import (
    Client,
    CommandFailed,
    add_file,
    daemon_in,
    file_options,
    image_of,
    node,
    reopen,
)
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
            self.file_node, self.pass_in, self.export, self.move, self.parts, self.change_part,
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

    def parts(self) -> None:
        """Parts by nodes and by names that others want, too."""
        copy = self.flat.path.parents[1] / "copy" / self.flat.path.name
        for number, path in enumerate(self.flat.files[:2]):
            with contextlib.suppress(CommandFailed):
                add_file(self.client, f"part{number}", path)
        file = self.chance.choice(["part0", file_options(copy, **{"node-name": "new"})])
        extent = file_options(self.flat.files[1], **{"node-name": "new"})
        extents = self.chance.choice([[], ["part1"], [extent]])
        with contextlib.suppress(CommandFailed):
            reopen(self.client, self.options(file=file, extents=extents))
        for name in ("part0", "part1"):
            self.client.execute("blockdev-del", node_name=name)

    def change_part(self) -> None:
        name = self.chance.choice(["part0", "new"])
        reopen(self.client, file_options(self.flat.path, **{"node-name": name}))

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


def test_any_commands_at_once_leave_every_node_whole(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
        assert [each for each in caplog.records if each.levelname == "ERROR"] == []
        node = daemon.table.get("vm")
        assert isinstance(node, ImageNode)
        assert node.image.pread(flat.size, 0) == content
        told = client.nodes()
        for child in told["vm"]["children"]:
            assert told[child["node-name"]]["ro"] is (node.image.mode == "r")
            assert told[child["node-name"]]["cache"]["direct"] is (node.image.cache == "none")


# -- between two steps of one command


def before_once(
    monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str, step: Callable[[], None]
) -> None:
    """Do `step` before the next call of that method."""
    method = getattr(owner, name)

    def do_both(*arguments: Any) -> Any:
        monkeypatch.setattr(owner, name, method)
        step()
        return method(*arguments)

    monkeypatch.setattr(owner, name, do_both)


@pytest.fixture
def other(socket_path: Path) -> Iterator[Client]:
    """Another client."""
    with Client(socket_path, timeout=20) as client:
        yield client


def test_the_name_of_a_part_is_never_free_while_the_parts_are_made_anew(
    client: Client, other: Client, folder: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, third = (make_raw(folder, SIZE, name=name) for name in ("copy", "third"))
    client.execute("blockdev-add", **node("disk", file_options(raw, **{"node-name": "f"})))
    refused = []

    def add() -> None:
        with pytest.raises(CommandFailed, match="Duplicate nodes") as caught:
            add_file(other, "f", third)
        refused.append(caught.value)

    for step in ("children", "release"):
        before_once(monkeypatch, Opener, step, add)
    reopen(client, node("disk", file_options(copy)))
    assert len(refused) == 2
    assert client.nodes()["f"]["file"] == str(copy)


def test_a_file_that_becomes_an_images_is_changed_with_the_image_held(
    client: Client, other: Client, daemon: Daemon, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, copy = (make_raw(folder, SIZE, name=name) for name in ("disk", "copy"))
    add_file(client, "x", raw)
    held = []

    def look(*arguments: Any, **options: Any) -> Any:
        lock = daemon.table.get("disk").lock
        with ThreadPoolExecutor(1) as another:
            held.append(not another.submit(lock.acquire, blocking=False).result())
        return reopen_all(*arguments, **options)

    reopen_all = fdstash.reopen_all
    monkeypatch.setattr(fdstash, "reopen_all", look)
    before_once(
        monkeypatch, Held, "__enter__", lambda: other.execute("blockdev-add", **node("disk", "x"))
    )
    reopen(client, file_options(copy, **{"node-name": "x"}))
    assert held == [True]
    assert image_of(daemon, "disk").pwrite(b"x", 0) == 1
    assert copy.read_bytes()[:1] == b"x"


def test_a_part_that_is_made_anew_meanwhile_is_changed_as_it_is_then(
    client: Client, other: Client, folder: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = make_raw(folder, SIZE, name="copy")
    client.execute("blockdev-add", **node("disk", file_options(raw, **{"node-name": "f"})))
    before_once(
        monkeypatch, Held, "__enter__", lambda: reopen(other, node("disk", file_options(copy)))
    )
    reopen(client, file_options(copy, **{"node-name": "f", "cache": {"direct": True}}))
    assert client.nodes()["f"]["cache"]["direct"] is True


def test_a_part_that_ends_while_its_image_is_waited_for_is_gone(
    client: Client,
    other: Client,
    daemon: Daemon,
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its name comes first, so whoever wants both has it when the image's reopen ends it."""
    copy = make_raw(raw.parent, SIZE, name="copy")
    client.execute("blockdev-add", **node("disk", file_options(raw, **{"node-name": "a"})))
    part = daemon.table.get("a")
    asked: list[Future[None]] = []
    reopen_all = fdstash.reopen_all

    def after_it_another_waits(*given: Any, **options: Any) -> Any:
        reports = reopen_all(*given, **options)
        monkeypatch.setattr(fdstash, "reopen_all", reopen_all)
        asked.append(threads.submit(reopen, other, file_options(raw, **{"node-name": "a"})))
        while part.lock.acquire(blocking=False):
            part.lock.release()
        return reports

    monkeypatch.setattr(fdstash, "reopen_all", after_it_another_waits)
    with ThreadPoolExecutor(1) as threads:
        reopen(client, node("disk", file_options(copy, **{"node-name": "b"})))
        with pytest.raises(CommandFailed, match="Failed to find node with node-name='a'"):
            asked[0].result()
