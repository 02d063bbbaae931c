"""`fdstash serve` end to end: the program, its monitor and NBD server, and real clients."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

import fdstash
from tests.support.disks import ExtentSpec, FlatDisk, make_flat, make_raw
from tests.support.fuse import HeldFs
from tests.support.hosts import FailingLoop
from tests.support.monitor import Client, CommandFailed, file_options, node, reopen
from tests.support.nbd_peers import fio, run, uri
from tests.support.qemu_tools import QemuIo, qemu_img, qemu_io
from tests.support.sandbox import NOBODY, Sandbox
from tests.support.serve import files_of, serving, sockets_of
from tests.support.tier import count

SIZE = 1 << 20
BLOCK = 1 << 16


def flat(folder: Path, extents: int, sectors: int) -> FlatDisk:
    """As QEMU takes it."""
    specs = [ExtentSpec("RW", sectors, name=f"disk-f{n:03}.vmdk") for n in range(1, extents + 1)]
    return make_flat(folder, specs, create_type="twoGbMaxExtentFlat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    return made


@pytest.fixture
def qmp(tmp_path: Path) -> Path:
    return tmp_path / "qmp"


@pytest.fixture
def nbd(tmp_path: Path) -> Path:
    return tmp_path / "nbd"


def io(where: Path, *commands: str, name: str = "") -> None:
    ran = qemu_io(uri(where, name), *commands)
    assert ran.status == 0, ran


def exported(where: Path) -> dict[str, int]:
    """Sizes by name, as nbdinfo lists them."""
    told = json.loads(run("nbdinfo", "libnbd-bin", "--json", "--list", uri(where)))
    return {each["export-name"]: each["export-size"] for each in told["exports"]}


# -- one line


def made(folder: Path, kind: str) -> tuple[Path, str]:
    """An image of SIZE bytes, and its format."""
    if kind == "raw":
        return make_raw(folder, SIZE), "raw"
    if kind == "flat":
        return flat(folder, 8, SIZE // 512 // 8).path, "vmdk"
    fdstash.create(folder / "disk.vmdk", "vmdk", SIZE, subformat="monolithicSparse")
    return folder / "disk.vmdk", "vmdk"


@pytest.mark.parametrize("kind", ["raw", "flat", "sparse"])
def test_one_line_serves_an_image_until_a_signal_ends_it(
    folder: Path, tmp_path: Path, qmp: Path, nbd: Path, kind: str
) -> None:
    path, format = made(folder, kind)
    expected = tmp_path / "expected"
    with fdstash.open(path, format=format) as image:
        content = bytearray(image.pread(SIZE, 0))
    expected.write_bytes(content)
    line = [str(path), "--format", format, "--mode", "r+", "--qmp", str(qmp), "--nbd", str(nbd)]
    with serving(*line) as daemon, Client(qmp) as client:
        told = qemu_img("info", "--output=json", uri(nbd))
        assert json.loads(told.output)["virtual-size"] == SIZE
        assert exported(nbd) == {"": SIZE}
        same = qemu_img("compare", "-f", "raw", "-F", "raw", expected, uri(nbd))
        assert same.status == 0, same
        # Across the end of the second extent.
        io(nbd, "write -P 5 200k 120k", "read -P 5 200k 120k", "write -f -P 6 512 512")
        with QemuIo(uri(nbd), writeback=True) as connected:
            assert "wrote" in connected.do("write -P 7 700k 64k")
            assert client.execute("query-block-exports")[0]["id"] == "disk"
            assert daemon.end() == 0
            assert "failed" in connected.do("read 0 512")
        assert client.event("SHUTDOWN") == {"guest": False, "reason": "host-signal"}
        assert not qmp.exists()
        assert not nbd.exists()
    for start, length, value in ((200, 120, 5), (700, 64, 7)):
        content[start << 10 : (start + length) << 10] = bytes([value]) * (length << 10)
    content[512:1024] = b"\6" * 512
    expected.write_bytes(content)
    same = qemu_img("compare", "-f", "raw", "-F", format, expected, path)
    assert same.status == 0, same


def test_what_is_served_for_reading_takes_no_write(folder: Path, nbd: Path) -> None:
    path, content = make_raw(folder, SIZE), make_raw(folder, SIZE).read_bytes()
    with serving(str(path), "--format", "raw", "--nbd", str(nbd)):
        ran = qemu_io(uri(nbd), "write 0 512")
        assert ran.status != 0, ran
        assert qemu_io(uri(nbd), "read 0 512", options=["-r"]).status == 0
    assert path.read_bytes() == content


# -- reopened under a load


class Manager:
    """The library's client, which reopens the one image and checks what is then said of it."""

    def __init__(self, path: Path, pid: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = QMPClient("manager")
        self.loop.run_until_complete(self.client.connect(os.fspath(path)))
        self.pid = pid

    def execute(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        return self.loop.run_until_complete(self.client.execute(name, arguments))

    def check(self, folder: Path, files: int, *, direct: bool) -> None:
        """The nodes say what is wanted, and the kernel says the same."""
        nodes = {each["node-name"]: each for each in self.execute("query-named-block-nodes")}
        children = [each["node-name"] for each in nodes["disk"]["children"]]
        assert len(children) == files
        for each in [nodes["disk"], *map(nodes.__getitem__, children)]:
            assert (each["ro"], each["cache"]["direct"]) == (False, direct)
        found = files_of(self.pid, folder)
        assert set(found) == {nodes[name]["file"] for name in children}
        wanted = os.O_RDWR | (os.O_DIRECT if direct else 0)
        assert set(itertools.chain(*found.values())) == {wanted}

    def close(self) -> None:
        self.loop.run_until_complete(self.client.disconnect())
        self.loop.close()


@pytest.mark.parametrize("kind", ["raw", "flat"])
def test_reopens_without_pause_disturb_no_verified_load(
    tmp_path: Path, folder: Path, qmp: Path, nbd: Path, kind: str
) -> None:
    size = 64 * BLOCK
    path = make_raw(folder, size) if kind == "raw" else flat(folder, 64, BLOCK // 512).path
    format, files = ("raw", 1) if kind == "raw" else ("vmdk", 65)
    line = [str(path), "--format", format, "--mode", "r+", "--qmp", str(qmp), "--nbd", str(nbd)]
    load = ["--bs=4k", "--iodepth=16", f"--size={size}", "--verify=crc32c", "--do_verify=1"]
    load += ["--rw=randrw", "--rwmixread=30", "--loops=2", "--verify_fatal=1"]
    with (
        serving(*line, "--allow-folder", str(tmp_path)) as daemon,
        ThreadPoolExecutor(1) as pool,
        closing(Manager(qmp, daemon.process.pid)) as manager,
    ):
        idle, loaded = sockets_of(daemon.process.pid), 0
        job = pool.submit(fio, nbd, *load)
        for turn in itertools.count():
            if job.done():
                assert job.result()["write"]["total_ios"] > 0
                if loaded >= count(120):
                    break
                job = pool.submit(fio, nbd, *load)
            loaded += sockets_of(daemon.process.pid) > idle
            direct = turn % 2 == 0
            if turn % 4 < 2:
                order = {"node-name": "disk", "hostcache": not direct}
                manager.execute("block_set_hostcache", order)
            else:
                folder = folder.rename(tmp_path / f"images-{turn}")
                file = file_options(folder / path.name)
                options = node("disk", file, format, cache={"direct": direct})
                manager.execute("blockdev-reopen", {"options": [options]})
            manager.check(folder, files, direct=direct)
        assert daemon.end() == 0
    assert "ERROR" not in daemon.log


# -- exports


def end_unused_export(client: Client, name: str) -> None:
    """Its last client has ended, which the daemon may not have seen yet."""
    for _ in range(1000):
        try:
            client.execute("block-export-del", id=name)
        except CommandFailed as refused:
            assert "still in use" in refused.desc
            time.sleep(0.01)
        else:
            return
    raise AssertionError(f"export {name} is in use by nobody, and cannot be ended")


def test_exports_come_and_go_under_real_clients(folder: Path, qmp: Path, nbd: Path) -> None:
    path, other = make_raw(folder, SIZE), make_raw(folder, 2 * SIZE, name="other.raw")
    line = [str(path), "--format", "raw", "--mode", "r+", "--qmp", str(qmp), "--nbd", str(nbd)]
    with serving(*line, "--allow-folder", str(folder)), Client(qmp) as client:
        client.execute("blockdev-add", driver="raw", node_name="b", file=file_options(other))
        client.execute(
            "block-export-add", type="nbd", id="e", node_name="b", name="second", writable=True
        )
        assert exported(nbd) == {"": SIZE, "second": 2 * SIZE}
        with QemuIo(uri(nbd, "second")) as one, QemuIo(uri(nbd)) as two:
            assert "wrote" in one.do("write -P 9 0 64k")
            assert "still in use" in client.refusal("block-export-del", id="e").desc
            assert "in use" in client.refusal("blockdev-del", node_name="b").desc
            client.execute("block-export-del", id="e", mode="hard")
            assert client.event("BLOCK_EXPORT_DELETED") == {"id": "e"}
            assert "failed" in one.do("read 0 512")
            assert "wrote" in two.do("write -P 8 0 64k")
            assert [each["id"] for each in client.execute("query-block-exports")] == ["disk"]
            client.execute("blockdev-del", node_name="b")
            assert other.read_bytes()[:BLOCK] == b"\x09" * BLOCK
            client.execute("nbd-server-stop")
            assert client.event("BLOCK_EXPORT_DELETED") == {"id": "disk"}
            assert "failed" in two.do("read 0 512")
        assert client.execute("query-block-exports") == []
        assert not nbd.exists()
        address = {"type": "unix", "data": {"path": str(nbd)}}
        client.execute("nbd-server-start", addr=address, max_connections=1)
        client.execute("block-export-add", type="nbd", id="again", node_name="disk", name="x")
        assert exported(nbd) == {"x": SIZE}
        ran = qemu_io(uri(nbd, "x"), "read -P 8 0 64k", options=["-r"])
        assert ran.status == 0, ran
        end_unused_export(client, "again")
        assert client.event("BLOCK_EXPORT_DELETED") == {"id": "again"}


def test_a_request_that_fails_on_the_host_is_told_to_monitors(
    stopped_fuse: HeldFs, qmp: Path, nbd: Path
) -> None:
    make_raw(stopped_fuse.backing, SIZE)
    path = stopped_fuse.folder / "disk.raw"
    line = [str(path), "--format", "raw", "--mode", "r+", "--qmp", str(qmp), "--nbd", str(nbd)]
    with serving(*line) as daemon, Client(qmp) as client, QemuIo(uri(nbd)) as guest:
        for command, code, operation in (
            (f"read {BLOCK} 4k", errno.EIO, "read"),
            (f"write {BLOCK} 4k", errno.ENOSPC, "write"),
        ):
            stopped_fuse.break_bytes(BLOCK, 4096, code)
            assert os.strerror(code) in guest.do(command)
            assert client.event("BLOCK_IO_ERROR") == {
                "device": "",
                "node-name": "disk",
                "operation": operation,
                "action": "report",
                "nospace": code == errno.ENOSPC,
                "reason": os.strerror(code),
            }
        stopped_fuse.break_bytes(BLOCK, 4096, 0)
        assert "wrote" in guest.do(f"write -P 3 {BLOCK} 4k")
        assert daemon.end() == 0
    assert (stopped_fuse.backing / "disk.raw").read_bytes()[BLOCK:][:4096] == b"\3" * 4096


@pytest.mark.root
def test_the_end_flushes_and_tells_where_that_fails(
    failing_loop: Callable[..., FailingLoop], qmp: Path, nbd: Path
) -> None:
    failing = failing_loop()
    assert failing.folder is not None
    path = make_raw(failing.folder, SIZE)
    line = [str(path), "--format", "raw", "--mode", "r+", "--qmp", str(qmp), "--nbd", str(nbd)]
    with serving(*line) as daemon, Client(qmp) as client, QemuIo(uri(nbd), writeback=True) as guest:
        failing.poison(path)
        assert "wrote" in guest.do("write -P 3 0 64k")
        assert daemon.end() == 1
        assert client.event("BLOCK_IO_ERROR")["operation"] == "write"
    assert "ERROR: closing exports: " in daemon.log
    assert "Traceback" not in daemon.log


@pytest.mark.root
@pytest.mark.parametrize("command", ["nbd-server-stop", "block-export-del"])
def test_an_export_that_ends_without_its_last_flush_says_so(
    failing_loop: Callable[..., FailingLoop], qmp: Path, nbd: Path, command: str
) -> None:
    failing = failing_loop()
    assert failing.folder is not None
    path = make_raw(failing.folder, SIZE)
    line = [str(path), "--format", "raw", "--mode", "r+", "--qmp", str(qmp), "--nbd", str(nbd)]
    with serving(*line) as daemon, Client(qmp) as client, QemuIo(uri(nbd), writeback=True) as guest:
        failing.poison(path)
        assert "wrote" in guest.do("write -P 3 0 64k")
        # It ends all the same: the events say how.
        hard = {"id": "disk", "mode": "hard"}
        client.run(command, hard if command == "block-export-del" else {})
        assert client.event("BLOCK_EXPORT_DELETED") == {"id": "disk"}
        told = [each["data"] for each in client.events if each["event"] == "BLOCK_IO_ERROR"]
        assert [(each["node-name"], each["operation"]) for each in told] == [("disk", "write")]
        assert client.execute("query-block-exports") == []
        daemon.end()
    assert "what clients wrote is not flushed: " in daemon.log
    assert "Traceback" not in daemon.log


# -- with passed descriptors alone

# Two sockets that listen are all that it gets from outside.
SANDBOXED = """
import os, socket
from fdstash.export import NbdServer
from fdstash.monitor import Daemon
from fdstash.monitor.listener import Listener

qmp, nbd, folder = args
daemon = Daemon(server=NbdServer)
daemon.adopt(Listener(socket.socket(fileno=qmp), None))
daemon.exports.start_on(socket.socket(fileno=nbd))
daemon.wait()
result = [os.getuid(), os.path.exists(folder + "/disk.vmdk"), daemon.close()]
"""


def _getfd(client: Client, path: Path, flags: int) -> None:
    client.getfd(path.name, path, flags)


def _add_fd(client: Client, path: Path, flags: int) -> None:
    client.add_fd(path, flags, opaque=path.name)


@pytest.fixture
def sandboxed(folder: Path, qmp: Path, nbd: Path) -> Iterator[Sandbox]:
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for sock, path in ((one, qmp), (two, nbd)):
            sock.bind(os.fspath(path))
            sock.listen()
        numbers = [one.fileno(), two.fileno()]
        child = Sandbox(
            SANDBOXED,
            *numbers,
            os.fspath(folder),
            hidden=[folder],
            identity=NOBODY,
            pass_fds=numbers,
        )
    with child:
        yield child


@pytest.mark.root
@pytest.mark.parametrize("give", [_getfd, _add_fd])
def test_a_daemon_without_files_serves_what_it_is_passed(
    folder: Path,
    qmp: Path,
    nbd: Path,
    sandboxed: Sandbox,
    give: Callable[[Client, Path, int], None],
) -> None:
    disk = flat(folder, 32, BLOCK // 512)
    for path in disk.files:
        path.chmod(0o600)
    expected = bytearray(disk.guest_bytes())
    with Client(qmp) as client:
        for path in disk.files:
            give(client, path, os.O_RDWR)
            client.getfd(f"lock:{path.name}", path, os.O_RDONLY)
        file = file_options(disk.path.name)
        client.execute("blockdev-add", driver="vmdk", node_name="vm", file=file)
        client.execute("block-export-add", type="nbd", id="e", node_name="vm", writable=True)
        assert exported(nbd) == {"vm": disk.size}
        with QemuIo(uri(nbd, "vm")) as guest:
            for turn, flags in enumerate((os.O_DIRECT, 0, os.O_DIRECT), 1):
                # Aligned to nothing: a reopen must not ask more of a client than it was told.
                start, length = turn * 5 * BLOCK - 4099, 2 * BLOCK + 7
                assert "wrote" in guest.do(f"write -P {turn} {start} {length}")
                expected[start : start + length] = bytes([turn]) * length
                if turn == 1:
                    for path in disk.files:
                        give(client, path, os.O_RDWR | flags)
                cache = {"direct": bool(flags)}
                reopen(client, node("vm", file, "vmdk", cache=cache))
                assert client.nodes()["vm"]["cache"]["direct"] is bool(flags)
                assert "read" in (said := guest.do(f"read -P {turn} {start} {length}"))
                assert "failed" not in said, said
            assert "failed" not in guest.do("flush")
        client.execute("quit")
        assert client.event("BLOCK_EXPORT_DELETED") == {"id": "e"}
    assert sandboxed.result() == [NOBODY.uid, False, True]
    assert disk.guest_bytes() == expected
