"""The hosts that tests/support/hosts.py makes behave as the tests that use them believe."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import mounts
from tests.support.fuse import HeldFs
from tests.support.hosts import FailingLoop, Hosts

pytestmark = pytest.mark.root

BLKSSZGET = 0x1268


def direct_write(path: str | Path, size: int) -> None:
    """One aligned write of `size` bytes with O_DIRECT."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size) as buffer:
            os.pwritev(fd, [buffer], 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_loop_device_has_the_sectors_asked_for(
    loop_device: Callable[..., str], sector_size: int
) -> None:
    device = loop_device(1 << 20, sector_size=sector_size)
    fd = os.open(device, os.O_RDWR)
    assert struct.unpack("i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0] == sector_size
    assert os.lseek(fd, 0, os.SEEK_END) == 1 << 20
    os.close(fd)
    direct_write(device, sector_size)
    if sector_size == 4096:
        with pytest.raises(OSError, match="Invalid argument"):
            direct_write(device, 512)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_file_systems_are_real_shared_and_take_direct_writes(
    hosts: Hosts, ext4_mount: Callable[..., Path], xfs_mount: Callable[..., Path],
    kind: str, sector_size: int,
) -> None:  # fmt: skip
    make = ext4_mount if kind == "ext4" else xfs_mount
    first, second = make(sector_size=sector_size), make(sector_size=sector_size)
    assert first != second
    assert first.stat().st_dev == second.stat().st_dev
    assert mounts.run("stat", "-f", "-c", "%T", first, package="coreutils") in ("ext2/ext3", "xfs")
    direct_write(first / "file", sector_size)
    if sector_size == 4096:
        with pytest.raises(OSError, match="Invalid argument"):
            direct_write(first / "file", 512)


def _fails(fd: int) -> bool:
    try:
        os.fsync(fd)
    except OSError as error:
        assert error.errno in (errno.EIO, errno.ENOSPC)
        return True
    return False


@pytest.mark.parametrize("file_system", ["ext4", None])
def test_write_back_fails_after_poison_and_works_after_repair(
    failing_loop: Callable[..., FailingLoop], file_system: str | None
) -> None:
    failing = failing_loop(file_system=file_system)
    path = failing.folder / "file" if failing.folder else failing.device
    size = 1 << 20
    writer = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(writer, b"a" * size, 0)
    os.fsync(writer)
    failing.poison(path if failing.folder else None, length=size)
    other = os.open(path, os.O_RDWR)
    assert os.pwrite(writer, b"b" * size, 0) == size
    assert _fails(writer)
    assert _fails(other), "every description hears of it once"
    assert not _fails(writer)
    failing.repair()
    os.pwrite(writer, b"c" * size, 0)
    assert not _fails(writer)
    os.close(other)
    os.close(writer)
    with open(failing.backing, "rb") as file:
        assert b"c" * 65536 in file.read()


def test_poison_spares_other_files(failing_loop: Callable[..., FailingLoop]) -> None:
    failing = failing_loop()
    assert failing.folder is not None
    for name in ("bad", "good"):
        (failing.folder / name).write_bytes(bytes(65536))
    failing.poison(failing.folder / "bad")
    for name, fails in (("good", False), ("bad", True)):
        with open(failing.folder / name, "r+b", buffering=0) as file:
            file.write(b"x" * 65536)
            assert _fails(file.fileno()) == fails


def _open_in_thread(path: Path) -> tuple[threading.Thread, list[int | OSError]]:
    outcome: list[int | OSError] = []

    def attempt() -> None:
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            outcome.append(error)
        else:
            outcome.append(fd)
            os.close(fd)

    thread = threading.Thread(target=attempt)
    thread.start()
    return thread, outcome


def test_held_opens_hang_while_reads_and_writes_go_on(stopped_fuse: HeldFs) -> None:
    path = stopped_fuse.folder / "file"
    path.write_bytes(b"before")
    fd = os.open(path, os.O_RDWR)
    stopped_fuse.hold_opens()
    thread, outcome = _open_in_thread(path)
    stopped_fuse.wait_open_hanging()
    os.pwrite(fd, b"during", 0)
    os.fsync(fd)
    assert os.pread(fd, 6, 0) == b"during"
    assert (stopped_fuse.backing / "file").read_bytes() == b"during"
    assert outcome == []
    stopped_fuse.release_opens()
    thread.join(10)
    assert len(outcome) == 1
    assert isinstance(outcome[0], int)
    stopped_fuse.refuse_opens(errno.EACCES)
    with pytest.raises(PermissionError):
        path.read_bytes()
    os.close(fd)


def test_a_stopped_server_hangs_opens_until_it_goes_on(stopped_fuse: HeldFs) -> None:
    path = stopped_fuse.folder / "file"
    path.write_bytes(b"bytes")
    stopped_fuse.stop()
    thread, outcome = _open_in_thread(path)
    thread.join(0.3)
    assert outcome == []
    stopped_fuse.resume()
    thread.join(10)
    assert len(outcome) == 1
    assert isinstance(outcome[0], int)


@pytest.mark.parametrize("how", ["stopped", "held"])
def test_a_hung_mount_always_goes_away(hosts: Hosts, how: str) -> None:
    server = hosts.held_fuse()
    (server.folder / "file").write_bytes(b"bytes")
    if how == "stopped":
        server.stop()
    else:
        server.hold_opens()
    thread, outcome = _open_in_thread(server.folder / "file")
    thread.join(0.1)
    server.close()
    thread.join(10)
    assert len(outcome) == 1
    assert isinstance(outcome[0], OSError)
    assert not os.path.ismount(server.folder)


_VICTIM = """
import sys, time
from tests.support import mounts
from tests.support.hosts import Hosts
hosts = Hosts()
failing = hosts.failing_loop(16 << 20, "ext4")
hosts.loop(1 << 20)
hosts.folder("ext4", 32 << 20)
server = hosts.held_fuse()
server.stop()
print(server.folder.parent, *mounts._loops_below(str(server.folder.parent)), flush=True)
time.sleep(60)
"""


def test_what_a_killed_run_left_is_swept() -> None:
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", _VICTIM], cwd=root, stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        folder, *devices = victim.stdout.readline().split()
        assert folder not in mounts.sweep(), "its owner still lives"
        victim.send_signal(signal.SIGKILL)
    assert folder in mounts.sweep()
    assert not os.path.exists(folder)
    assert mounts._mounts_below(folder) == []
    assert len(devices) == 3
    assert not set(devices) & set(mounts.run("losetup", "--list", "--noheadings").split())
