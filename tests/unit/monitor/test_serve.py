"""`fdstash serve` as a program: its sockets, its end, and what a service manager gives it."""

from __future__ import annotations

import array
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.disks import make_flat, make_raw, noise
from tests.support.kernel import is_direct
from tests.support.monitor import Client, file_options
from tests.support.need import need_program, plain_environment
from tests.support.seen import image_descriptors
from tests.support.serve import Daemon, serving
from tests.support.tier import count

ROOT = Path(__file__).parents[3]
SIZE = 1 << 16


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_clean(tmp_path: Path, number: int) -> None:
    flat, qmp = make_flat(tmp_path), tmp_path / "qmp"
    with serving(str(flat.path), "--mode", "r+", "--qmp", str(qmp)) as daemon:
        assert stat.S_IMODE(qmp.stat().st_mode) == 0o600
        with Client(qmp) as client:
            assert client.nodes()["disk"]["image"]["virtual-size"] == flat.size
            assert daemon.end(number) == 0
            assert client.event("SHUTDOWN") == {"guest": False, "reason": "host-signal"}
            with pytest.raises(EOFError):
                client.read()
    assert not qmp.exists()
    lines = daemon.log.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d [\d:,]+ (INFO|WARNING|ERROR): ", line) for line in lines)
    assert "vmdk" in lines[0]
    assert lines[-1].endswith("INFO: ended")


def test_a_signal_at_any_moment_ends_it(tmp_path: Path) -> None:
    """While it starts it ends at once, and from then on clean."""
    codes = set()
    for number in range(count(200)):
        daemon = Daemon("--qmp", str(tmp_path / "qmp"))
        if number % 2:
            daemon.ready()
        else:
            time.sleep(number / count(200) * 0.8)
        codes.add(daemon.end())
    assert codes <= {0, -signal.SIGTERM, 128 + signal.SIGTERM}
    assert 0 in codes


def test_quit_answers_tells_and_ends(tmp_path: Path) -> None:
    with serving("--qmp", str(tmp_path / "qmp")) as daemon, Client(tmp_path / "qmp") as client:
        client.execute("quit")
        assert client.event("SHUTDOWN") == {"guest": False, "reason": "host-qmp-quit"}
        assert daemon.wait() == 0


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    qmp = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(qmp))
    with serving("--qmp", str(qmp), "--socket-mode", "0660"):
        assert stat.S_IMODE(qmp.stat().st_mode) == 0o660
        second = Daemon("--qmp", str(qmp))
        assert second.wait() == 1
        assert "another program listens on it" in second.log
        with Client(qmp) as client:
            client.execute("query-version")
    qmp.unlink()
    qmp.write_text("not a socket")
    third = Daemon("--qmp", str(qmp))
    assert third.wait() == 1
    assert "no socket" in third.log
    assert qmp.read_text() == "not a socket"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "nobody could connect: give --qmp, --nbd, or both"),
        (["--qmp", "{}/qmp", "--socket-mode", "9"], 2, "no octal number"),
        (["--qmp", "{}/qmp", "--node-name", "1"], 1, "Invalid node-name"),
        (["--qmp", "{}/qmp", "{}/none.img"], 1, "none.img: open"),
        (["--qmp", "{}/none/qmp"], 1, "cannot listen there"),
        (["--qmp", "{}/qmp", "--mode", "r+", "{}/disk.raw"], 1, "name it, format"),
    ],
)
def test_what_it_cannot_do_it_says_in_a_line(
    tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    make_raw(tmp_path, SIZE).write_bytes(bytes(SIZE))
    daemon = Daemon(*(each.format(tmp_path) for each in arguments))
    assert daemon.wait() == code
    assert text in daemon.log
    assert "Traceback" not in daemon.log
    assert not (tmp_path / "qmp").exists()


def test_what_is_written_before_the_end_is_in_the_file(tmp_path: Path) -> None:
    raw, qmp = make_raw(tmp_path, SIZE), tmp_path / "qmp"
    with (
        serving(
            str(raw), "-f", "raw", "--mode", "r+", "--node-name", "d", "--qmp", str(qmp)
        ) as daemon,
        Client(qmp) as client,
    ):
        client.execute("block_resize", node_name="d", size=2 * SIZE)
        client.execute("block_set_hostcache", node_name="d", hostcache=False)
        assert daemon.end() == 0
    assert raw.read_bytes() == noise(SIZE, 1) + bytes(SIZE)


def test_allowed_folders_and_limits_come_from_the_command_line(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    raw, other, qmp = make_raw(inside, SIZE), make_raw(tmp_path, SIZE), tmp_path / "qmp"
    options = ["--allow-folder", str(inside), "--max-clients", "1", "--max-descriptors", "1"]
    with serving("--qmp", str(qmp), *options), Client(qmp) as client:
        client.execute("blockdev-add", driver="raw", node_name="a", file=file_options(raw))
        client.refusal("blockdev-add", driver="raw", node_name="b", file=file_options(other))
        client.getfd("one", raw)
        with pytest.raises(Exception, match="1 descriptors"):
            client.getfd("two", raw)
        with pytest.raises((EOFError, ConnectionError)):
            Client(qmp)


def test_a_clients_text_cannot_forge_a_line_of_the_log(tmp_path: Path) -> None:
    with serving("--qmp", str(tmp_path / "qmp")) as daemon:
        with Client(tmp_path / "qmp") as client:
            name = "x\n2020-01-01 00:00:00,000 ERROR: forged\x1b[2J"
            client.refusal("blockdev-del", node_name=name)
        daemon.end()
    assert "forged" in daemon.log
    assert "\x1b" not in daemon.log
    assert not any(line.startswith("2020") for line in daemon.log.splitlines())


def test_a_log_that_nobody_reads_holds_up_nobody(tmp_path: Path) -> None:
    with serving("--qmp", str(tmp_path / "qmp")) as daemon, Client(tmp_path / "qmp") as client:
        for _ in range(2000):  # some 200 bytes each, into a pipe of 64 KiB
            client.refusal("blockdev-del", node_name="x" * 100)
        client.execute("quit")
        assert daemon.process.wait(60) == 0


# -- a service manager


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(8)
    return sock


class Manager:
    """systemd's side of NOTIFY_SOCKET: what it was told, and its descriptor store."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(0)
        self.path = path
        self.states: list[str] = []
        self.store: list[tuple[str, int]] = []

    def listen(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(4 * 8))
            except BlockingIOError:
                return
            lines = data.decode().split("\n")
            self.states += lines
            fields = dict(line.split("=", 1) for line in lines)
            name = fields.get("FDNAME", "")
            if "FDSTOREREMOVE" in fields:
                for found, fd in self.store:
                    if found == name:
                        os.close(fd)
                self.store = [each for each in self.store if each[0] != name]
            for _, _, block in ancillary:
                received = array.array("i")
                received.frombytes(block)
                self.store += [(name, fd) for fd in received]

    def close(self) -> None:
        self.sock.close()
        for _, fd in self.store:
            os.close(fd)


def test_sockets_of_a_service_manager_are_taken_and_left_listening(tmp_path: Path) -> None:
    raw, manager = make_raw(tmp_path, SIZE), Manager(tmp_path / "notify")
    with listening(tmp_path / "qmp") as qmp:
        for _ in range(2):
            with serving(
                str(raw), "-f", "raw", fds={"qmp": qmp.fileno()}, NOTIFY_SOCKET=str(manager.path)
            ) as daemon:
                with Client(tmp_path / "qmp") as client:
                    assert "disk" in client.nodes()
                manager.listen()
                assert "READY=1" in manager.states
                assert daemon.end() == 0
                manager.listen()
                assert "STOPPING=1" in manager.states
        assert (tmp_path / "qmp").exists()
    assert manager.store == []
    manager.close()


def test_descriptors_in_the_store_outlive_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "a folder: 100%"
    flat, manager = make_flat(folder), Manager(tmp_path / "notify")
    qmp = str(tmp_path / "qmp")
    arguments = [str(flat.path), "--mode", "r+", "--qmp", qmp]
    environment = {"NOTIFY_SOCKET": str(manager.path), "FDSTORE": "64"}
    with serving(*arguments, **environment) as daemon:
        manager.listen()
        assert len(manager.store) == len(flat.files)
        with Client(qmp) as client:
            client.execute("block_set_hostcache", node_name="disk", hostcache=False)
        assert daemon.end() == 0
        manager.listen()
    assert len(manager.store) == len(flat.files)
    names = [name for name, _ in manager.store]
    assert all(name.isascii() and ":" not in name and len(name) < 256 for name in names)
    assert all(is_direct(fd) for _, fd in manager.store)
    folder.rename(tmp_path / "moved")
    moved = [tmp_path / "moved" / path.name for path in flat.files]
    with serving(*arguments, fds=dict(manager.store), **environment) as daemon:
        with Client(qmp) as client:
            told = client.nodes()["disk"]
            assert told["image"]["virtual-size"] == flat.size
            assert told["file"] == str(flat.path)
        manager.listen()
        assert sorted(name for name, _ in manager.store) == sorted(names)
        assert daemon.end() == 0
    manager.listen()
    manager.close()
    assert image_descriptors(*moved) == []


def test_what_the_store_has_no_room_for_is_said_and_goes_on(tmp_path: Path) -> None:
    flat, manager = make_flat(tmp_path), Manager(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": str(manager.path), "FDSTORE": "2"}
    with serving(str(flat.path), "--qmp", str(tmp_path / "qmp"), **environment) as daemon:
        assert daemon.end() == 0
    assert "does not keep" in daemon.log
    manager.listen()
    assert manager.store == []
    manager.close()


def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    analyze = need_program("systemd-analyze", "systemd")
    for unit in (ROOT / "examples" / "systemd").iterdir():
        text = unit.read_text().replace("/usr/bin/fdstash", "/bin/true")
        (tmp_path / unit.name.replace("@.", "@images-vm.vmdk.")).write_text(text)
    units = sorted(path.name for path in tmp_path.iterdir())
    assert len(units) == 3
    done = subprocess.run(
        [analyze, "verify", "--man=no", *units],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=plain_environment() | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        timeout=60,
    )
    # Of other units on this machine it may say what it likes.
    assert done.returncode == 0, done.stderr
    assert "fdstash" not in done.stderr


def test_the_answer_of_a_program_is_one_line_of_json(tmp_path: Path) -> None:
    """For clients that are three lines of shell."""
    with serving("--qmp", str(tmp_path / "qmp")), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / "qmp"))
        sock.sendall(b'{"execute": "qmp_capabilities"}\n{"execute": "query-commands"}\n')
        text = b""
        end = time.monotonic() + 20
        while text.count(b"\r\n") < 3 and time.monotonic() < end:
            text += sock.recv(1 << 16)
        greeting, empty, commands = [json.loads(line) for line in text.splitlines()]
    assert set(greeting) == {"QMP"}
    assert empty == {"return": {}}
    assert {"name": "blockdev-reopen"} in commands["return"]
