"""A daemon that cannot reach the image's folder serves and reopens a VMDK of 64 extents.

A manager, here the library `qemu.qmp`, passes the descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from tests.support.disks import ExtentSpec, FlatDisk, make_flat, make_raw
from tests.support.qmp import disconnect
from tests.support.sandbox import NOBODY, Sandbox

pytestmark = pytest.mark.root

EXTENTS = tuple(ExtentSpec("RW", 128, name=f"disk-f{n:03}.vmdk") for n in range(64))
BLOCK = 128 * 512

# Serves until it is told to quit; reads and writes of the guest's come over the other socket.
SERVER = """
import hashlib, json, os, socket, threading
from fdstash.monitor import Daemon
from fdstash.monitor.listener import Listener

number, folder = args
daemon = Daemon()
daemon.adopt(Listener(socket.socket(fileno=number), None))
stream = sock.makefile("rw")

def guest():
    for line in stream:
        order = json.loads(line)
        image = daemon.table.get("vm").image
        if "write" in order:
            image.pwrite(order["write"].encode(), order["at"])
            image.flush()
        files = [(file.mode, file.direct) for file in image.files]
        digest = hashlib.sha256(image.pread(image.size, 0)).hexdigest()
        print(json.dumps({"digest": digest, "files": files}), file=stream, flush=True)

threading.Thread(target=guest, daemon=True).start()
print(json.dumps({"visible": os.path.exists(folder + "/disk.vmdk"), "uid": os.getuid()}),
      file=stream, flush=True)
daemon.wait()
result = daemon.close()
"""


class Manager:
    """What a manager does: it opens files, passes them in, and says what to do with them."""

    def __init__(self, path: Path, guest: Any, disk: FlatDisk, way: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = QMPClient("manager")
        self.loop.run_until_complete(self.client.connect(os.fspath(path)))
        self.guest, self.disk, self.way = guest, disk, way

    def execute(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        return self.loop.run_until_complete(self.client.execute(name, arguments))

    def pass_in(self, name: str, path: Path, flags: int, number: int) -> None:
        fd = os.open(path, flags)
        self.client.send_fd_scm(fd)
        os.close(fd)
        if self.way == "getfd":
            self.execute("getfd", {"fdname": name})
        else:
            self.execute("add-fd", {"fdset-id": number, "opaque": name})

    def pass_all(self, flags: int, *, locks: bool = False) -> None:
        for number, path in enumerate(self.disk.files):
            self.pass_in(path.name, path, flags, number)
            if locks:
                self.pass_in(f"lock:{path.name}", path, os.O_RDONLY, 1000 + number)

    def options(self, mode: str, *, direct: bool = False) -> dict[str, Any]:
        """By names, or by numbers where sets were made."""
        named = self.way != "numbers"
        first = self.disk.path.name if named else "/dev/fdset/0"
        found: dict[str, Any] = {
            "driver": "vmdk",
            "node-name": "vm",
            "read-only": mode == "r",
            "cache": {"direct": direct},
            "file": {"driver": "file", "filename": first},
        }
        if not named:
            numbers = range(1, len(self.disk.files))
            found["extents"] = [{"driver": "file", "filename": f"/dev/fdset/{n}"} for n in numbers]
        return found

    def ask(self, **order: Any) -> Any:
        print(json.dumps(order), file=self.guest, flush=True)
        return json.loads(self.guest.readline())

    def check(self, mode: str, *, direct: bool) -> None:
        """Every file in that mode, right bytes, and writes that arrive in the third extent."""
        order = {} if mode == "r" else {"write": f"in {mode} {direct}", "at": 2 * BLOCK + 4096}
        found = self.ask(**order)
        assert {tuple(file) for file in found["files"]} == {(mode, direct)}
        assert len(found["files"]) == 65
        content = self.disk.guest_bytes()
        assert found["digest"] == hashlib.sha256(content).hexdigest()
        if order:
            text = str(order["write"]).encode()
            assert content[2 * BLOCK + 4096 :][: len(text)] == text

    def quit(self) -> None:
        self.execute("quit")
        self.loop.run_until_complete(disconnect(self.client))


@pytest.fixture
def disk(tmp_path: Path) -> FlatDisk:
    made = make_flat(tmp_path / "images", EXTENTS)
    for path in made.files:
        path.chmod(0o600)
    return made


@contextlib.contextmanager
def managed(tmp_path: Path, disk: FlatDisk, way: str, **sandbox: Any) -> Iterator[Manager]:
    folder, path = disk.path.parent, tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))
        sock.listen()
        child = Sandbox(
            SERVER,
            sock.fileno(),
            os.fspath(folder),
            hidden=[folder],
            pass_fds=[sock.fileno()],
            imports=["hashlib", "json"],
            **sandbox,
        )
    with child, child.sock.makefile("rw") as guest:
        told = json.loads(guest.readline())
        assert told["visible"] is False
        assert told["uid"] == (NOBODY.uid if sandbox else 0)
        manager = Manager(path, guest, disk, way)
        with contextlib.closing(manager.loop):
            yield manager
            manager.quit()
        guest.close()
        assert child.result() is True


MODES = [("r", False), ("r+", True), ("r", True), ("r+", False)]


@pytest.mark.parametrize("way", ["getfd", "add-fd", "numbers"])
def test_one_descriptor_a_file_serves_every_reopen_of_a_daemon_that_may_open_again(
    tmp_path: Path, disk: FlatDisk, way: str
) -> None:
    with managed(tmp_path, disk, way) as manager:
        manager.pass_all(os.O_RDWR)
        manager.execute("blockdev-add", manager.options("r+"))
        manager.check("r+", direct=False)
        for mode, direct in MODES:
            manager.execute("blockdev-reopen", {"options": [manager.options(mode, direct=direct)]})
            manager.check(mode, direct=direct)
        manager.execute("block_set_hostcache", {"node-name": "vm", "hostcache": False})
        manager.check("r+", direct=True)


@pytest.mark.parametrize("way", ["getfd", "add-fd"])
def test_another_user_without_permissions_reopens_with_what_is_passed(
    tmp_path: Path, disk: FlatDisk, way: str
) -> None:
    with managed(tmp_path, disk, way, identity=NOBODY) as manager:
        manager.pass_all(os.O_RDWR, locks=True)
        manager.execute("blockdev-add", manager.options("r+"))
        manager.check("r+", direct=False)
        reopen = {"options": [manager.options("r")]}
        with pytest.raises(ExecuteError, match="ermission"):
            manager.execute("blockdev-reopen", reopen)
        manager.check("r+", direct=False)
        for mode, direct in MODES[:3]:
            access = os.O_RDWR if mode == "r+" else os.O_RDONLY
            manager.pass_all(access | (os.O_DIRECT if direct else 0))
            manager.execute("blockdev-reopen", {"options": [manager.options(mode, direct=direct)]})
            manager.check(mode, direct=direct)
        # That one it was opened with, and keeps.
        manager.execute("blockdev-reopen", {"options": [manager.options("r+")]})
        manager.check("r+", direct=False)


LOSING = """
import socket
from fdstash.monitor import Daemon, Settings
from fdstash.monitor.listener import Listener

daemon = Daemon(Settings(allow_folders=(args[1],)))
daemon.adopt(Listener(socket.socket(fileno=args[0]), None))
daemon.wait()
result = daemon.close()
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user reaches, as pytest's are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_when_permissions_have_gone_what_it_opened_at_first_serves(
    tmp_path: Path, open_folder: Path
) -> None:
    path = make_raw(open_folder, 1 << 16)
    os.chown(path, *NOBODY)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(tmp_path / "qmp"))
        sock.listen()
        fd = sock.fileno()
        child = Sandbox(LOSING, fd, os.fspath(open_folder), identity=NOBODY, pass_fds=[fd])
    with child, contextlib.closing(asyncio.new_event_loop()) as loop:
        client = QMPClient("manager")
        loop.run_until_complete(client.connect(os.fspath(tmp_path / "qmp")))

        def execute(name: str, arguments: dict[str, Any] | None = None) -> Any:
            return loop.run_until_complete(client.execute(name, arguments))

        def reopen(*, read_only: bool, direct: bool = False) -> None:
            cache = {"direct": direct}
            options = image | {"read-only": read_only, "cache": cache}
            execute("blockdev-reopen", {"options": [options]})

        def mode() -> tuple[bool, bool]:
            (found,) = (n for n in execute("query-named-block-nodes") if n["node-name"] == "vm")
            return found["ro"], found["cache"]["direct"]

        file = {"driver": "file", "node-name": "file", "filename": os.fspath(path)}
        image = {"driver": "raw", "node-name": "vm", "file": "file"}
        execute("blockdev-add", file)
        execute("blockdev-add", image)
        reopen(read_only=True)
        path.chmod(0)
        reopen(read_only=False)
        assert mode() == (False, False)
        with pytest.raises(ExecuteError, match="ermission"):
            reopen(read_only=True)
        assert mode() == (False, False)
        execute("quit")
        loop.run_until_complete(disconnect(client))
        assert child.result() is True


def test_without_a_descriptor_for_its_locks_the_error_says_what_to_do(
    tmp_path: Path, disk: FlatDisk
) -> None:
    with managed(tmp_path, disk, "getfd", identity=NOBODY) as manager:
        manager.pass_all(os.O_RDWR)
        options = manager.options("r+")
        with pytest.raises(ExecuteError, match=r"with getfd or add-fd as 'lock:disk\.vmdk'"):
            manager.execute("blockdev-add", options)
        options["file"]["locking"] = "off"
        manager.execute("blockdev-add", options)
        manager.check("r+", direct=False)
