"""Who gets in, what is exported, and how it ends."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fdstash
from fdstash import Image
from fdstash.errors import ClosedError, Error, OptionError
from fdstash.export import NbdServer
from tests.support.nbd_client import FLUSH, READ, WRITE, Client

ROOT = Path(__file__).parents[3]


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def code_of(call: Callable[[], object]) -> int:
    with pytest.raises(Error) as caught:
        call()
    assert isinstance(caught.value, OSError)
    assert caught.value.errno is not None
    return caught.value.errno


# -- exports


def test_several_exports_by_name(server: NbdServer, raw: Image, tmp_path: Path, where: str) -> None:
    (tmp_path / "other").write_bytes(b"other" + bytes(507))
    with fdstash.open(tmp_path / "other", format="raw") as other:
        server.add("1", raw, name="disk", writable=True, description="the disk")
        server.add("2", other, name="other")
        assert [(each.id, each.name, each.writable) for each in server.exports()] == [
            ("1", "disk", True),
            ("2", "other", False),
        ]
        with Client(where, "other") as client, Client(where, "disk") as one:
            assert client.read(5, 0) == b"other"
            assert one.size == raw.size
            until(lambda: [each.connections for each in server.exports()] == [1, 1])
        with pytest.raises(ConnectionRefusedError):
            Client(where, "")
        until(lambda: not server.exports()[1].connections)
        server.remove("2")
    assert [each.id for each in server.exports()] == ["1"]


def test_an_id_and_a_name_serve_once(server: NbdServer, raw: Image) -> None:
    server.add("1", raw, name="a")
    assert code_of(lambda: server.add("1", raw, name="b")) == errno.EEXIST
    assert code_of(lambda: server.add("2", raw, name="a")) == errno.EEXIST
    assert code_of(lambda: server.remove("2")) == errno.ENOENT
    server.remove("1")
    server.add("1", raw, name="a")


def test_what_cannot_be_exported(server: NbdServer, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    with fdstash.open(tmp_path / "disk", format="raw") as image:
        assert code_of(lambda: server.add("1", image, writable=True)) == errno.EROFS
        with pytest.raises(OptionError):
            server.add("1", image, name="n" * 4097)
        with pytest.raises(OptionError):
            server.add("1", image, description="a\0b")
    with pytest.raises(ClosedError):
        server.add("1", image)
    assert server.exports() == ()


def test_an_export_in_use_is_removed_only_by_force(where: str, raw: Image) -> None:
    gone: list[str] = []
    with NbdServer(on_deleted=gone.append) as server:
        server.listen_unix(where)
        server.add("1", raw, writable=True)
        with Client(where) as client:
            client.write(b"x" * 4096, 0)
            assert code_of(lambda: server.remove("1")) == errno.EBUSY
            client.write(b"y" * 4096, 0)
            server.remove("1", hard=True)
            assert client.is_closed()
        until(lambda: gone == ["1"])
        assert server.exports() == ()
        assert code_of(lambda: server.remove("1")) == errno.ENOENT
    assert raw.pread(1, 0) == b"y"
    assert gone == ["1"]


def test_requests_in_flight_are_finished_and_later_ones_told(
    server: NbdServer, raw: Image, where: str
) -> None:
    """Writes are held by the gate when the export is removed."""
    server.add("1", raw, writable=True)
    client = Client(where)
    client.write(b"0" * 512, 0)
    entered, release = threading.Event(), threading.Event()

    def prepare() -> None:
        entered.set()
        assert release.wait(20)

    reopening = threading.Thread(target=lambda: raw.reopen(mode="r+", prepare=prepare))
    reopening.start()
    assert entered.wait(20)
    held = client.send(WRITE, 0, data=b"1" * 512)
    assert client.ask(READ, 0, 512).data == b"0" * 512
    server.remove("1", hard=True)
    release.set()
    reopening.join()
    reply = client.reply()
    assert (reply.cookie, reply.error) == (held, 0)
    assert client.is_closed()
    client.close()
    until(lambda: not server.exports())
    assert raw.pread(1, 0) == b"1"


def test_close_ends_clients_handshakes_and_sockets(where: str, raw: Image) -> None:
    gone: list[str] = []
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    server = NbdServer(on_deleted=gone.append)
    server.listen_unix(where)
    address = server.listen_tcp("127.0.0.1", 0)
    server.add("1", raw, writable=True)
    client, over_tcp, half = Client(where), Client(address), Client(where, None)
    client.write(b"x", 0)
    over_tcp.write(b"y", 1)
    server.close()
    assert client.is_closed()
    assert over_tcp.is_closed()
    assert half.is_closed()
    assert gone == ["1"]
    assert not Path(where).exists()
    for each in (client, over_tcp, half):
        each.close()
    with pytest.raises(ConnectionRefusedError):
        Client(address)
    until(lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) == before)
    server.close()
    with pytest.raises(ClosedError):
        server.add("2", raw)
    with pytest.raises(ClosedError):
        server.listen_unix(where)


def test_a_client_that_takes_no_replies_does_not_hold_up_the_end(where: str, raw: Image) -> None:
    server = NbdServer()
    server.listen_unix(where)
    server.add("1", raw, writable=True)
    client = Client(where)
    for _ in range(64):
        client.send(READ, 0, 1 << 20)
    server.close(timeout=0.2)
    assert server.exports() == ()
    client.close()


def test_an_image_that_is_closed_first_fails_requests(where: str, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    image = fdstash.open(tmp_path / "disk", "r+", format="raw")
    with NbdServer() as server:
        server.listen_unix(where)
        server.add("1", image, writable=True)
        with Client(where) as client:
            assert client.read(512, 0) == bytes(512)
            image.close()
            assert client.ask(READ, 0, 512).error == errno.ESHUTDOWN
            assert client.ask(WRITE, 0, data=b"x").error == errno.ESHUTDOWN
            assert client.ask(FLUSH).error == errno.ESHUTDOWN
        with pytest.raises(ConnectionRefusedError):
            Client(where)


def test_a_flush_is_made_when_an_export_goes(
    where: str, raw: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    flush = raw.flush

    def counting() -> None:
        flush()
        flushed.append(1)

    monkeypatch.setattr(raw, "flush", counting)
    with NbdServer() as server:
        server.listen_unix(where)
        server.add("1", raw, writable=True)
        with Client(where) as client:
            client.write(b"x", 0)
    assert flushed == [1]


# -- errors


def test_failures_are_told_and_not_too_often(where: str, tmp_path: Path) -> None:
    """The image's file has become shorter than the image."""
    told: list[tuple[str, str, int]] = []
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    with (
        NbdServer(on_error=lambda *what: told.append(what)) as server,
        fdstash.open(path, format="raw") as image,
    ):
        server.listen_unix(where)
        server.add("1", image, name="disk")
        os.truncate(path, 4096)
        with Client(where, "disk") as client:
            started = time.monotonic()
            for _ in range(200):
                assert client.ask(READ, 65536, 4096).error == errno.EIO
            assert client.ask(READ, 1 << 21, 4096).error == errno.EINVAL
            taken = time.monotonic() - started
        server.close()
    assert told
    assert set(told) == {("disk", "read", errno.EIO)}
    assert len(told) <= 2 + taken * 10


def test_a_callback_that_raises_harms_nobody(where: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))

    def bad(*_: object) -> None:
        raise ValueError

    with fdstash.open(path, format="raw") as image:
        with NbdServer(on_error=bad, on_deleted=bad) as server:
            server.listen_unix(where)
            server.add("1", image)
            os.truncate(path, 4096)
            with Client(where) as client:
                assert client.ask(READ, 65536, 4096).error == errno.EIO
                assert client.read(512, 0) == bytes(512)
        assert server.exports() == ()


# -- listening


def test_permissions_of_the_socket(server: NbdServer, tmp_path: Path, where: str) -> None:
    assert stat.S_IMODE(os.lstat(where).st_mode) == 0o600
    server.listen_unix(str(tmp_path / "open"), mode=0o666)
    assert stat.S_IMODE(os.lstat(tmp_path / "open").st_mode) == 0o666


def test_the_socket_of_a_dead_server_is_replaced_and_a_live_one_not(
    server: NbdServer, tmp_path: Path, where: str
) -> None:
    dead = str(tmp_path / "dead")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(dead)
        other.listen()
        with NbdServer() as late:
            assert code_of(lambda: late.listen_unix(dead)) == errno.EADDRINUSE
            assert code_of(lambda: late.listen_unix(where)) == errno.EADDRINUSE
    server.listen_unix(dead)
    Client(dead, None).close()
    (tmp_path / "file").write_bytes(b"precious")
    assert code_of(lambda: server.listen_unix(str(tmp_path / "file"))) == errno.EADDRINUSE
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert code_of(lambda: server.listen_unix(str(tmp_path / "no" / "folder"))) == errno.ENOENT
    assert code_of(lambda: server.listen_unix(str(tmp_path / ("n" * 200)))) == errno.ENAMETOOLONG


def test_a_socket_that_another_server_has_replaced_is_left_alone(
    tmp_path: Path, where: str
) -> None:
    server = NbdServer()
    server.listen_unix(where)
    os.unlink(where)
    with NbdServer() as late:
        late.listen_unix(where)
        server.close()
        Client(where, None).close()
    assert not os.path.lexists(where)


def test_tcp_is_for_this_machine_alone(server: NbdServer, raw: Image) -> None:
    for host in ("0.0.0.0", "", "::", "192.0.2.1"):
        assert code_of(lambda host=host: server.listen_tcp(host, 0)) == errno.EACCES  # type: ignore[misc]
    assert code_of(lambda: server.listen_tcp("no.such.host.invalid", 0)) == errno.EADDRNOTAVAIL
    server.add("1", raw, writable=True)
    host, port = server.listen_tcp("localhost", 0)
    with Client((host, port)) as client:
        client.write(b"over TCP", 0)
        assert client.read(8, 0) == b"over TCP"
    assert code_of(lambda: server.listen_tcp(host, port)) == errno.EADDRINUSE
    anywhere = server.listen_tcp("0.0.0.0", 0, allow_remote=True)
    Client(("127.0.0.1", anywhere[1]), None).close()


_UNCLOSED = """
import sys, fdstash
from fdstash.export import NbdServer
from tests.support.nbd_client import WRITE, Client
image = fdstash.open(sys.argv[1], "r+", format="vmdk")
server = NbdServer()
server.add("1", image, writable=True)
server.listen_unix(sys.argv[2])
client = Client(sys.argv[2])
client.write(b"acknowledged", 100000)
half = Client(sys.argv[2], None)
client.send(WRITE, 200000, data=b"x" * 4096)
"""


def test_an_interpreter_ends_with_clients_connected(tmp_path: Path, where: str) -> None:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 1 << 20, subformat="monolithicSparse")
    command = [sys.executable, "-c", _UNCLOSED, str(path), where]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    with fdstash.open(path) as image:
        assert image.pread(12, 100000) == b"acknowledged"
