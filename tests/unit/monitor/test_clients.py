"""Clients: several at once, of whom none holds up the others."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import Image
from fdstash.monitor import Daemon
from fdstash.monitor.nodes import ImageNode
from tests.support.disks import make_raw
from tests.support.kernel import descriptor_count
from tests.support.monitor import Client, daemon_in, file_options
from tests.support.tier import count

SIZE = 1 << 16


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def add_raw(client: Client, path: Path, name: str = "disk") -> None:
    client.execute("blockdev-add", driver="raw", node_name=name, file=file_options(path))


# -- the protocol


def test_before_the_negotiation_nothing_else_is_taken(socket_path: Path) -> None:
    with Client(socket_path, negotiate=False) as client:
        assert set(client.greeting["QMP"]) == {"version", "capabilities"}
        error = client.refusal("query-version")
        assert error.kind == "CommandNotFound"
        assert "qmp_capabilities" in error.desc
        client.refusal("qmp_capabilities", enable=["oob"])
        assert client.refusal("query-version").kind == "CommandNotFound"
        client.execute("qmp_capabilities")
        client.execute("query-version")
        assert client.refusal("qmp_capabilities").kind == "CommandNotFound"


@pytest.mark.parametrize("identity", [1, "x", None, [], {"a": [1]}, 1.5, True])
def test_an_id_comes_back_with_answer_and_error(client: Client, identity: Any) -> None:
    for command in ("query-fdsets", "none"):
        answer = client.say(json.dumps({"execute": command, "id": identity}))
        assert answer["id"] == identity
        assert type(answer["id"]) is type(identity)
    assert "id" not in client.say('{"execute": "query-fdsets"}')


def test_commands_run_in_order_however_they_are_cut(client: Client) -> None:
    commands = b" ".join(
        json.dumps({"execute": "query-fdsets", "id": number}).encode() for number in range(50)
    )
    client.send(commands)
    assert [client.answer()["id"] for _ in range(50)] == list(range(50))
    for byte in commands[:400]:
        client.send(bytes([byte]))
    client.send(commands[400:])
    assert [client.answer()["id"] for _ in range(50)] == list(range(50))


def test_after_bad_json_the_connection_goes_on(client: Client) -> None:
    for bad in (b"}", b"[]", b"1 ", b"\x01", b'{"execute": foo}', b"[" * 1025, b'"' + b"x" * 10):
        answer = client.say(bad + b"\n")
        assert answer["error"]["class"] == "GenericError"
    client.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.read()
    client.sock.settimeout(30)
    # What was open of the brackets ends with an error of its own.
    client.send(b"\x01\n")
    client.answer()
    client.execute("query-version")


def test_a_huge_command_is_refused_and_not_kept(client: Client) -> None:
    chunk = b"x" * (1 << 16)
    client.send(b'{"execute": "')
    for _ in range(20):
        client.send(chunk)
    client.send(b"\n")
    assert "size limit" in client.answer()["error"]["desc"]
    client.execute("query-version")


def test_events_reach_every_client_that_has_negotiated(daemon: Daemon, socket_path: Path) -> None:
    with (
        Client(socket_path) as one,
        Client(socket_path) as two,
        Client(socket_path, negotiate=False) as mute,
    ):
        daemon.emit("BLOCK_EXPORT_DELETED", {"id": "e"})
        assert one.event("BLOCK_EXPORT_DELETED") == two.event("BLOCK_EXPORT_DELETED") == {"id": "e"}
        assert mute.refusal("query-version").kind == "CommandNotFound"
        assert mute.events == []


# -- nobody waits for another


def test_a_client_that_does_not_read_is_disconnected_and_holds_up_nobody(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        daemon_in(folder, max_output=1 << 16) as (daemon, path),
        Client(path) as deaf,
        Client(path) as other,
    ):
        for _ in range(20000):
            daemon.emit("BLOCK_EXPORT_DELETED", {"id": "x" * 100})
            other.event("BLOCK_EXPORT_DELETED")
            if len(daemon._sessions) == 1:
                break
        assert "does not read: disconnected" in caplog.text
        until(lambda: len(daemon._sessions) == 1, "the deaf client is still there")
        other.execute("query-version")
        deaf.sock.settimeout(5)
        with pytest.raises((EOFError, ConnectionError)):
            read_to_the_end(deaf)


def read_to_the_end(client: Client) -> None:
    while True:
        client.read()


def test_a_client_that_reads_late_gets_everything(client: Client) -> None:
    request = json.dumps({"execute": "query-qmp-schema", "id": 1}).encode()
    client.send(request * 60)
    time.sleep(0.3)
    sizes = {len(client.answer()["return"]) for _ in range(60)}
    assert len(sizes) == 1


class Held:
    """An image whose reopen waits until it is told to go on."""

    def __init__(self, image: Image) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(image,))
        self._thread.start()
        assert self.entered.wait(20)

    def _run(self, image: Image) -> None:
        image.reopen(cache="none", prepare=self._prepare)

    def _prepare(self) -> None:
        self.entered.set()
        assert self.go_on.wait(60)

    def end(self) -> None:
        self.go_on.set()
        self._thread.join()


def test_a_reopen_that_takes_long_holds_up_neither_queries_nor_other_nodes(
    daemon: Daemon, socket_path: Path, folder: Path
) -> None:
    slow, quick = make_raw(folder, SIZE, name="slow"), make_raw(folder, SIZE, name="quick")
    with Client(socket_path) as one, Client(socket_path) as two:
        add_raw(one, slow, "slow")
        add_raw(one, quick, "quick")
        node = daemon.table.get("slow")
        assert isinstance(node, ImageNode)
        held = Held(node.image)
        try:
            change = {"driver": "raw", "node-name": "slow", "file": file_options(slow)}
            one.send(
                json.dumps(
                    {"execute": "blockdev-reopen", "arguments": {"options": [change]}}
                ).encode()
            )
            for _ in range(10):
                assert set(two.nodes()) >= {"slow", "quick"}
                two.execute("query-block")
                two.execute("block_set_hostcache", node_name="quick", hostcache=False)
                two.execute("block_set_hostcache", node_name="quick", hostcache=True)
            two.execute("blockdev-del", node_name="quick")
        finally:
            held.end()
        assert one.answer() == {"return": {}}
        assert two.nodes()["slow"]["cache"]["direct"] is False


def test_a_blocked_open_keeps_a_name_and_holds_up_nobody_else(
    daemon: Daemon, socket_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_raw(folder, SIZE)
    entered, go_on = threading.Event(), threading.Event()
    plain = fdstash.open

    def slow(*args: Any, **keywords: Any) -> Image:
        if threading.current_thread().name.endswith("-1"):
            entered.set()
            assert go_on.wait(60)
        return plain(*args, **keywords)

    monkeypatch.setattr(fdstash, "open", slow)
    with Client(socket_path) as one, Client(socket_path) as two:
        arguments = {"driver": "raw", "node-name": "disk", "file": file_options(raw)}
        one.send(json.dumps({"execute": "blockdev-add", "arguments": arguments}).encode())
        assert entered.wait(20)
        assert two.nodes() == {}
        assert (
            "Duplicate nodes"
            in two.refusal(
                "blockdev-add", driver="raw", node_name="disk", file=file_options(raw)
            ).desc
        )
        go_on.set()
        assert one.answer() == {"return": {}}


# -- half-open, too many, gone


def test_when_all_places_are_taken_a_silent_client_makes_room(folder: Path) -> None:
    with daemon_in(folder, max_clients=3) as (_, path):
        silent = Client(path, negotiate=False)
        with silent, Client(path) as one, Client(path) as two, Client(path) as three:
            with pytest.raises((EOFError, ConnectionError)):
                silent.read()
            with pytest.raises((EOFError, ConnectionError)):
                Client(path)
            for client in (one, two, three):
                client.execute("query-version")


def test_half_open_clients_cost_a_place_each_and_nothing_else(folder: Path) -> None:
    with daemon_in(folder, max_clients=8) as (daemon, path):
        sockets = []
        for _ in range(count(4000)):
            sock = socket.socket(socket.AF_UNIX)
            sockets.append(sock)
            sock.connect(str(path))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(b'{"execute": "qmp_cap')
        until(lambda: daemon._accepted == len(sockets), "not all have been looked at")
        until(lambda: len(daemon._sessions) <= 8, "more clients than allowed")
        with Client(path) as client:
            client.execute("query-version")
        for sock in sockets:
            sock.close()
        until(lambda: not daemon._sessions, "clients that are gone are still there")


SESSION = (
    b'{"execute": "qmp_capabilities"} {"execute": "query-fdsets", "id": 1}'
    b'{"execute": "getfd", "arguments": {"fdname": "disk"}}'
    b'{"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "n%d",'
    b' "file": {"driver": "file", "filename": "disk"}}}'
    b'{"execute": "blockdev-del", "arguments": {"node-name": "n%d"}}'
)


def test_a_client_may_go_at_every_byte(folder: Path) -> None:
    raw = make_raw(folder, SIZE)
    with daemon_in(folder) as (daemon, path):
        before = descriptor_count()
        step = 1 if count(20) == 20 else 7
        for length in range(0, len(SESSION), step):
            text = SESSION.replace(b"%d", str(length).encode())
            fd = os.open(raw, os.O_RDWR)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                socket.send_fds(sock, [text[:length] or b" "], [fd, fd])
                os.close(fd)
                if length % 2:
                    sock.shutdown(socket.SHUT_WR)
        until(lambda: not daemon._sessions, "clients that are gone are still there")
        until(lambda: descriptor_count() == before + _held(daemon), "descriptors are left")


def _held(daemon: Daemon) -> int:
    """Descriptors of images that were added by clients who went before they deleted them."""
    images = [node for node in daemon.table if isinstance(node, ImageNode)]
    return sum(2 * len(node.image.files) + len(node.kept.names()) for node in images)
