"""The end of a daemon, and what it does when something hangs or is used up."""

from __future__ import annotations

import itertools
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdstash import Image
from fdstash.monitor import Daemon, Settings
from tests.support.disks import make_raw
from tests.support.kernel import open_descriptors
from tests.support.monitor import Client, FakeServer, add_raw, daemon_in

SIZE = 1 << 16


@pytest.fixture
def daemon_of_its_own(folder: Path) -> Iterator[Daemon]:
    made = Daemon(Settings(allow_folders=(str(folder),), close_timeout=0.3), server=FakeServer)
    made.listen(str(folder / "qmp"))
    yield made
    FakeServer.made.clear()


def test_what_hangs_is_left_behind_and_said(
    folder: Path,
    daemon_of_its_own: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on = threading.Event()
    close = Image.close

    def hang(self: Image) -> None:
        if self.name.endswith("slow"):
            assert go_on.wait(60)
        close(self)

    monkeypatch.setattr(Image, "close", hang)
    with Client(folder / "qmp") as client:
        add_raw(client, make_raw(folder, SIZE, name="slow"), "slow")
        add_raw(client, make_raw(folder, SIZE, name="quick"), "quick")
        assert daemon_of_its_own.close() is False
        assert client.event("SHUTDOWN")["guest"] is False
    assert "closing node 'slow' takes too long, and is given up" in caplog.text
    assert "quick" not in caplog.text.partition("takes too long")[2]
    go_on.set()


def test_exports_end_before_their_images(folder: Path, daemon_of_its_own: Daemon) -> None:
    with Client(folder / "qmp") as client:
        add_raw(client, make_raw(folder, SIZE))
        address = {"type": "unix", "data": {"path": str(folder / "nbd")}}
        client.execute("nbd-server-start", addr=address)
        client.execute("block-export-add", type="nbd", id="e", node_name="disk")
        (server,) = FakeServer.made
        image = server.held["e"].image
        closed: list[bool] = []
        end = server.end
        server.end = lambda export_id: (closed.append(image.closed), end(export_id))[1]  # type: ignore[method-assign]
        assert daemon_of_its_own.close() is True
        assert closed == [False]
        assert image.closed
        assert client.event("BLOCK_EXPORT_DELETED") == {"id": "e"}


def test_with_no_descriptor_left_clients_wait_and_are_served_later(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with daemon_in(folder) as (_, path), Client(path) as client:
        waiting = socket.socket(socket.AF_UNIX)
        waiting.settimeout(30)
        taken = open_descriptors()
        limit = next(number for number in itertools.count() if number not in taken)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            waiting.connect(str(path))
            client.execute("query-version")
            end = time.monotonic() + 20
            while "raise LimitNOFILE" not in caplog.text:
                assert time.monotonic() < end
                time.sleep(0.01)
            client.execute("query-version")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert waiting.recv(4) == b'{"QM'
        waiting.close()
    assert caplog.text.count("no monitor can connect") == 1


def test_a_socket_that_was_replaced_meanwhile_is_left(folder: Path) -> None:
    with daemon_in(folder) as (_, path):
        path.unlink()
        path.write_text("another's")
        kept = path.rename(path.with_name("kept"))
    assert kept.read_text() == "another's"
    assert not os.path.exists(path)
