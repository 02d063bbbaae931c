"""The benchmark's QMP client takes an answer for an answer, and says what went wrong."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from fdstash.bench.qmp import Monitor, RefusedCommandError
from fdstash.errors import Error
from tests.support.disks import make_raw
from tests.support.monitor import daemon_in

GREETING = b'{"QMP": {}}\r\n{"return": {}}\r\n'


def nobody_has_ended(_patience: float) -> None:
    return


def test_events_are_no_answers(tmp_path: Path) -> None:
    image = make_raw(tmp_path, 1 << 16)
    with daemon_in(tmp_path) as (_, path), Monitor(str(path), nobody_has_ended) as monitor:
        file = {"driver": "file", "filename": str(image)}
        monitor.execute("blockdev-add", {"driver": "raw", "node-name": "disk", "file": file})
        address = {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}
        monitor.execute("nbd-server-start", {"addr": address})
        for _ in range(5):
            export = {"type": "nbd", "id": "e", "node-name": "disk"}
            monitor.execute("block-export-add", export)
            assert monitor.execute("query-block-exports")[0]["id"] == "e"
            assert monitor.timed("block-export-del", {"id": "e"}) > 0
            assert monitor.execute("query-block-exports") == []
        with pytest.raises(RefusedCommandError, match="disk"):
            monitor.timed("blockdev-add", {"driver": "raw", "node-name": "disk", "file": file})
        assert monitor.execute("query-version")["qemu"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", "the connection to the daemon's monitor ended: end of file"),
        (GREETING, "the connection to the daemon's monitor ended: end of file"),
        (GREETING + b"[1]\r\n", r"that is no monitor: it said b'\[1\]"),
        (b"HTTP/1.1 400 Bad Request\r\n", "that is no monitor: it said b'HTTP"),
    ],
)
def test_a_bad_peer_is_told_of(tmp_path: Path, said: bytes, told: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp"))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(said)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 10):
                    pass

        peer = threading.Thread(target=serve)
        peer.start()
        asked = []
        with (
            pytest.raises(Error, match=told),
            Monitor(str(tmp_path / "qmp"), asked.append) as monitor,
        ):
            monitor.execute("query-version")
        peer.join()
    assert asked == [0] or asked[-1] > 0  # where the connection ended: whether the daemon did


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", "a peer has not answered its connection for 0.2 s"),
        (GREETING, 'a peer has not answered {"execute": "query-version"} for 0.2 s'),
    ],
)
def test_a_peer_that_does_not_answer_is_named_with_what_it_was_asked(
    tmp_path: Path, said: bytes, told: str
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp"))
        server.listen()
        ends: list[socket.socket] = []

        def serve() -> None:
            ends.append(server.accept()[0])
            ends[0].sendall(said)

        peer = threading.Thread(target=serve)
        peer.start()
        try:
            with (
                pytest.raises(Error) as caught,
                Monitor(
                    str(tmp_path / "qmp"), nobody_has_ended, name="a peer", timeout=0.2
                ) as monitor,
            ):
                monitor.execute("query-version")
        finally:
            peer.join()
            ends[0].close()
    assert str(caught.value) == told
