"""Exports: which node is served to NBD clients, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fdstash.monitor import Daemon
from fdstash.monitor.nodes import FileNode
from tests.support.disks import make_raw, noise
from tests.support.monitor import Client, FakeServer, add_raw, file_options, node, reopen

SIZE = 1 << 16


@pytest.fixture
def exported(client: Client, raw: Path, folder: Path) -> FakeServer:
    add_raw(client, raw)
    assert (
        client.refusal("block-export-add", type="nbd", id="e", node_name="disk").desc
        == "NBD server not running"
    )
    where = {"type": "unix", "data": {"path": str(folder / "nbd")}}
    client.execute("nbd-server-start", addr=where)
    assert "already" in client.refusal("nbd-server-start", addr=where).desc
    client.execute("block-export-add", type="nbd", id="e", node_name="disk", writable=True)
    (server,) = FakeServer.made
    return server


def test_an_export_keeps_its_node_open_and_writable(
    client: Client, exported: FakeServer, raw: Path
) -> None:
    assert client.execute("query-block-exports") == [
        {"id": "e", "type": "nbd", "node-name": "disk", "shutting-down": False}
    ]
    assert "Node disk is in use" in client.refusal("blockdev-del", node_name="disk").desc
    read_only = node("disk", file_options(raw), read_only=True)
    error = client.refusal("blockdev-reopen", options=[read_only])
    assert "cannot support read-write users: export 'e'" in error.desc
    reopen(client, node("disk", file_options(raw), cache={"direct": True}))
    client.execute("block-export-del", id="e")
    assert client.event("BLOCK_EXPORT_DELETED") == {"id": "e"}
    reopen(client, read_only)
    client.execute("blockdev-del", node_name="disk")


def test_exports_have_ids_and_names_of_their_own(client: Client, exported: FakeServer) -> None:
    def refusal(**more: Any) -> str:
        given = {"type": "nbd", "id": "f", "node_name": "disk", **more}
        return client.refusal("block-export-add", **given).desc

    assert refusal(id="1") == "Invalid block export id"
    assert refusal(id="e") == "Block export id 'e' is already in use"
    assert refusal(name="disk") == "NBD server already has export named 'disk'"
    assert refusal(node_name="none") == "Cannot find device='' nor node-name='none'"
    client.execute("block-export-add", type="nbd", id="f", node_name="disk", name="other")
    assert client.refusal("block-export-del", id="none").desc == "Export 'none' is not found"
    exported.busy.add("f")
    assert "still in use" in client.refusal("block-export-del", id="f").desc
    client.execute("block-export-del", id="f", mode="hard")
    shown = {each["id"]: each["shutting-down"] for each in client.execute("query-block-exports")}
    assert shown == {"e": False, "f": True}
    assert client.events == []
    assert "in use" in client.refusal("blockdev-del", node_name="disk").desc
    exported.end("f")
    assert client.event("BLOCK_EXPORT_DELETED") == {"id": "f"}
    client.execute("nbd-server-stop")
    assert client.event("BLOCK_EXPORT_DELETED") == {"id": "e"}
    assert client.execute("query-block-exports") == []
    assert client.refusal("nbd-server-stop").desc == "NBD server not running"


def test_only_this_machine_may_be_listened_on(client: Client) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        where = {"type": "inet", "data": {"host": host, "port": "0"}}
        assert "proxy" in client.refusal("nbd-server-start", addr=where).desc
    for port in ("x", "65536", "-1", ""):
        where = {"type": "inet", "data": {"host": "127.0.0.1", "port": port}}
        assert "port" in client.refusal("nbd-server-start", addr=where).desc
    where = {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
    client.execute("nbd-server-start", addr=where, max_connections=3)
    assert FakeServer.made[-1].max_connections == 3


def test_a_socket_that_cannot_be_made_leaves_no_server(client: Client, folder: Path) -> None:
    nowhere = {"type": "unix", "data": {"path": str(folder / "none" / "nbd")}}
    assert "Could not listen" in client.refusal("nbd-server-start", addr=nowhere).desc
    client.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(folder / "n")}})


def test_errors_of_requests_are_events_and_not_a_flood(
    client: Client, exported: FakeServer
) -> None:
    for _ in range(1000):
        exported.on_error("disk", "flush", 28)
    event = client.event("BLOCK_IO_ERROR")
    assert event == {
        "device": "",
        "node-name": "disk",
        "operation": "write",
        "action": "report",
        "nospace": True,
        "reason": "No space left on device",
    }
    client.execute("query-version")
    assert len(client.events) < 40


def test_a_read_only_node_is_not_exported_for_writing(
    client: Client, exported: FakeServer, folder: Path
) -> None:
    add_raw(client, make_raw(folder, SIZE, name="other"), "ro", read_only=True)
    error = client.refusal("block-export-add", type="nbd", id="r", node_name="ro", writable=True)
    assert error.desc == "Cannot export read-only node as writable"


def test_a_file_by_itself_can_be_exported(
    client: Client, exported: FakeServer, folder: Path, daemon: Daemon
) -> None:
    other = make_raw(folder, SIZE, name="other", seed=5)
    client.execute("blockdev-add", driver="file", node_name="file", filename=str(other))
    client.execute("block-export-add", type="nbd", id="f", node_name="file", writable=True)
    assert exported.held["f"].image.pread(SIZE, 0) == noise(SIZE, 5)
    assert (
        "in use by 'f'"
        in client.refusal("blockdev-add", driver="raw", node_name="r", file="file").desc
    )
    client.execute("block-export-del", id="f")
    client.execute("blockdev-add", driver="raw", node_name="r", file="file")
    found = daemon.table.get("file")
    assert isinstance(found, FileNode)
    assert found.direct_image is None
