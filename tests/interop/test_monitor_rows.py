"""Where QEMU's reopen falls short, row by row, with a qemu-storage-daemon beside ours.

Each test shows what QEMU does, where it can be shown, and then what the monitor does with the same
command.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import Image, LockError
from fdstash.monitor import Daemon
from fdstash.monitor.nodes import ImageNode
from tests.support.disks import FlatDisk, make_flat_for_qemu, make_raw, noise
from tests.support.fuse import HeldFs
from tests.support.kernel import open_descriptors
from tests.support.monitor import Client, daemon_in, file_options
from tests.support.qemu_tools import qemu_io
from tests.support.qmp import StorageDaemon, StorageDaemonError
from tests.support.seen import READER_BYTES, WRITER_BYTES, image_descriptors, locked_bytes

SIZE = 1 << 16
DIRECT = {"cache": {"direct": True}}


@pytest.fixture
def flat(tmp_path: Path) -> FlatDisk:
    return make_flat_for_qemu(tmp_path / "flat")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path, SIZE)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Daemon, Path]]:
    with daemon_in(tmp_path) as found:
        yield found


@pytest.fixture
def daemon(served: tuple[Daemon, Path]) -> Daemon:
    return served[0]


@pytest.fixture
def client(served: tuple[Daemon, Path]) -> Iterator[Client]:
    with Client(served[1]) as made:
        yield made


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[StorageDaemon]:
    folder = tmp_path / "theirs"
    folder.mkdir()
    with StorageDaemon(folder) as found:
        yield found


def named(path: Path | str, **more: Any) -> dict[str, Any]:
    return file_options(path, **{"node-name": "file"}, **more)


def add(client: Client | StorageDaemon, path: Path | str, driver: str = "raw", **more: Any) -> None:
    """The same nodes on either: the image `vm` on the file `file`."""
    options = {"driver": driver, "node-name": "vm", "file": named(path, **more), **more}
    run(client, "blockdev-add", options)


def run(client: Client | StorageDaemon, name: str, arguments: dict[str, Any]) -> Any:
    return (client.run if isinstance(client, Client) else client.execute)(name, arguments)


def reopen(client: Client | StorageDaemon, *options: dict[str, Any]) -> None:
    run(client, "blockdev-reopen", {"options": list(options)})


def vm(file: Any = "file", driver: str = "raw", **more: Any) -> dict[str, Any]:
    return {"driver": driver, "node-name": "vm", "file": file, **more}


def image_of(daemon: Daemon) -> Image:
    node = daemon.table.get("vm")
    assert isinstance(node, ImageNode)
    return node.image


def modes(image: Image) -> set[tuple[str, bool]]:
    """As the kernel has them."""
    found = set()
    for file in image.files:
        flags = fcntl.fcntl(file.fd, fcntl.F_GETFL)
        found.add(("r+" if flags & os.O_RDWR else "r", bool(flags & os.O_DIRECT)))
    return found


def test_row_1_every_extent_changes(
    client: Client, daemon: Daemon, theirs: StorageDaemon, flat: FlatDisk
) -> None:
    add(theirs, flat.path, "vmdk")
    with pytest.raises(StorageDaemonError):
        reopen(theirs, vm(driver="vmdk", **DIRECT))
    reopen(theirs, named(flat.path, **DIRECT))
    flags = theirs.flags_in(flat.path.parent)
    assert {bool(each & os.O_DIRECT) for each in flags.values()} == {True, False}
    run(theirs, "blockdev-del", {"node-name": "vm"})

    add(client, flat.path, "vmdk")
    image = image_of(daemon)
    reopen(client, named(flat.path, **DIRECT))
    assert modes(image) == {("r+", True)}
    reopen(client, vm(driver="vmdk"))
    assert modes(image) == {("r+", False)}
    assert image.pread(image.size, 0) == flat.guest_bytes()


def test_row_2_a_renamed_file_is_reopened(
    client: Client, daemon: Daemon, theirs: StorageDaemon, raw: Path
) -> None:
    add(theirs, raw)
    raw = raw.rename(raw.with_name("renamed"))
    with pytest.raises(StorageDaemonError):
        reopen(
            theirs,
            vm(**{"read-only": True}),
            named(raw.with_name("disk.raw"), **{"read-only": True}),
        )
    run(theirs, "blockdev-del", {"node-name": "vm"})
    raw = raw.rename(raw.with_name("disk.raw"))

    add(client, raw)
    raw.rename(raw.with_name("renamed"))
    reopen(client, vm(**{"read-only": True}))
    assert modes(image_of(daemon)) == {("r", False)}
    reopen(client, vm(**DIRECT))
    assert modes(image_of(daemon)) == {("r+", True)}


def test_row_3_another_file_on_the_path_is_not_picked_up(
    client: Client, daemon: Daemon, raw: Path
) -> None:
    add(client, raw)
    raw.rename(raw.with_name("renamed"))
    make_raw(raw.parent, SIZE, seed=9)
    reopen(client, vm(**{"read-only": True}))
    reopen(client, named(raw, **DIRECT))
    assert image_of(daemon).pread(SIZE, 0) == noise(SIZE, 1)


def test_row_4_another_path_is_taken_all_or_nothing(
    client: Client, daemon: Daemon, theirs: StorageDaemon, raw: Path
) -> None:
    copy = raw.with_name("copy")
    copy.write_bytes(raw.read_bytes())
    add(theirs, raw)
    with pytest.raises(StorageDaemonError, match="Cannot change the option 'filename'"):
        reopen(theirs, named(copy))
    run(theirs, "blockdev-del", {"node-name": "vm"})

    add(client, raw)
    image = image_of(daemon)
    short = make_raw(raw.parent, SIZE // 2, name="short")
    before = sorted(open_descriptors().values())
    assert "bytes" in client.refusal("blockdev-reopen", options=[named(short)]).desc
    assert sorted(open_descriptors().values()) == before
    reopen(client, named(copy))
    image.pwrite(b"moved", 0)
    assert copy.read_bytes()[:5] == b"moved"
    assert image_descriptors(raw) == []


def test_row_5_read_only_is_read_only(
    client: Client, daemon: Daemon, theirs: StorageDaemon, raw: Path
) -> None:
    run(theirs, "blockdev-add", named(raw))
    theirs.reopen(named(raw))
    theirs.reopen(named(raw, **{"read-only": True}))
    (node,) = theirs.execute("query-named-block-nodes")
    assert node["ro"] is True
    theirs_mode = theirs.flags_in(raw.parent)["disk.raw"] & os.O_ACCMODE
    run(theirs, "blockdev-del", {"node-name": "file"})

    add(client, raw)
    image = image_of(daemon)
    reopen(client, vm())
    reopen(client, vm(**{"read-only": True}))
    assert modes(image) == {("r", False)}
    assert all(node["ro"] for node in client.nodes().values())
    # Whatever this version of QEMU does, ours says what is.
    assert theirs_mode in (os.O_RDONLY, os.O_RDWR)


def test_row_6_a_failed_reopen_of_a_passed_descriptor_leaves_its_flags(
    client: Client, daemon: Daemon, raw: Path
) -> None:
    fd = os.open(raw, os.O_RDWR)
    client.pass_fd(fd)
    client.execute("getfd", fdname="disk")
    add(client, "disk")
    other = make_raw(raw.parent, SIZE, name="other")
    client.execute("blockdev-add", driver="raw", node_name="other", file=file_options(other))
    bad = {"driver": "raw", "node-name": "other", "file": file_options(raw.with_name("none"))}
    client.refusal("blockdev-reopen", options=[vm(**DIRECT), bad])
    assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    assert modes(image_of(daemon)) == {("r+", False)}
    assert image_of(daemon).pread(100, 1) == noise(SIZE, 1)[1:101]
    reopen(client, vm(**DIRECT))
    assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    os.close(fd)


def test_row_7_what_an_open_refuses_a_reopen_refuses(
    client: Client, daemon: Daemon, flat: FlatDisk
) -> None:
    add(client, flat.path, "vmdk", **{"read-only": True})
    flat.path.write_text(
        flat.path.read_text().replace('RW 128 FLAT "b.bin"', 'RW 127 FLAT "b.bin"')
    )
    error = client.refusal("blockdev-reopen", options=[vm(driver="vmdk")])
    assert "disk.vmdk" in error.desc
    assert modes(image_of(daemon)) == {("r", False)}


def test_row_8_an_alignment_that_cannot_be_had_refuses_the_reopen(
    client: Client, daemon: Daemon, stopped_fuse: HeldFs
) -> None:
    make_raw(stopped_fuse.backing, SIZE)
    client.getfd("disk", stopped_fuse.folder / "disk.raw")
    add(client, "disk")
    image = image_of(daemon)
    before = sorted(open_descriptors().values())
    # As a device of larger blocks than are borne answers: no direct read is aligned enough.
    stopped_fuse.break_bytes(0, SIZE, errno.EINVAL)
    error = client.refusal("blockdev-reopen", options=[vm(**DIRECT)])
    assert "does not bear O_DIRECT" in error.desc
    stopped_fuse.break_bytes(0, SIZE, 0)
    assert modes(image) == {("r+", False)}
    assert sorted(open_descriptors().values()) == before
    image.pwrite(b"goes on", 3)
    reopen(client, vm(**DIRECT))
    assert modes(image) == {("r+", True)}
    assert image.pread(7, 3) == b"goes on"


@pytest.mark.root
def test_row_8_the_alignment_is_that_of_the_new_file(
    client: Client, daemon: Daemon, raw: Path, ext4_mount: Callable[..., Path]
) -> None:
    add(client, raw)
    image = image_of(daemon)
    copy = ext4_mount(sector_size=4096) / "copy"
    copy.write_bytes(raw.read_bytes())
    client.getfd("copy", copy)
    reopen(client, vm(named("copy"), **DIRECT))
    assert modes(image) == {("r+", True)}
    assert image.limits.offset_alignment == 4096
    image.pwrite(b"unaligned", 4090)
    image.flush()
    assert copy.read_bytes()[4090:4099] == b"unaligned"


def test_row_9_no_failure_leaks_a_descriptor(
    client: Client, daemon: Daemon, flat: FlatDisk
) -> None:
    add(client, flat.path, "vmdk")
    before = sorted(open_descriptors().values())
    for bad in (
        vm(named(flat.path.with_name("none")), "vmdk"),
        vm(named("/dev/fdset/3"), "vmdk"),
        vm(driver="vmdk", extents=["none"]),
        vm(driver="vmdk", cache={"direct": True, "no-flush": True}),
        vm(driver="vmdk", extents=[file_options(flat.files[1])] * 3),
        vm(driver="vmdk", extents=[file_options(flat.path.with_name("none"))]),
    ):
        for _ in range(5):
            client.refusal("blockdev-reopen", options=[bad])
    assert sorted(open_descriptors().values()) == before
    assert modes(image_of(daemon)) == {("r+", False)}


def test_row_10_neither_requests_nor_monitors_wait_for_a_reopen_that_hangs(
    served: tuple[Daemon, Path], client: Client, daemon: Daemon, raw: Path
) -> None:
    add(client, raw)
    image = image_of(daemon)
    entered, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        assert go_on.wait(60)

    with contextlib.ExitStack() as stack:
        thread = threading.Thread(target=lambda: image.reopen(cache="none", prepare=hang))
        thread.start()
        stack.callback(thread.join)
        stack.callback(go_on.set)
        assert entered.wait(20)
        other = stack.enter_context(Client(served[1]))
        second = make_raw(raw.parent, SIZE, name="second")
        other.execute("blockdev-add", driver="raw", node_name="b", file=file_options(second))
        other.execute("block_set_hostcache", node_name="b", hostcache=False)
        assert set(other.nodes()) >= {"vm", "b"}
        assert image.pread(SIZE, 0) == noise(SIZE, 1)


def test_row_11_two_nodes_on_one_description_keep_each_its_own_locks(
    client: Client, raw: Path
) -> None:
    fd = os.open(raw, os.O_RDWR)
    for name in ("one", "two"):
        client.pass_fd(fd)
        client.execute("getfd", fdname=name)
        options = {"driver": "raw", "node-name": name, "file": file_options(name)}
        client.run("blockdev-add", options | {"read-only": True})
    os.close(fd)
    assert locked_bytes(raw) == sorted(READER_BYTES * 2)
    client.execute("blockdev-del", node_name="one")
    assert locked_bytes(raw) == READER_BYTES


def test_row_11_after_a_reopen_read_only_who_lets_nobody_write_is_let_in(
    client: Client, raw: Path
) -> None:
    add(client, raw)
    assert locked_bytes(raw) == WRITER_BYTES
    with pytest.raises(LockError):
        fdstash.open(raw, format="raw")
    reopen(client, vm(**{"read-only": True}))
    assert locked_bytes(raw) == READER_BYTES
    with fdstash.open(raw, format="raw"):
        error = client.refusal("blockdev-reopen", options=[vm()])
    assert "in use" in error.desc
    assert qemu_io(raw, "write 0 512").refused_by_a_lock
    reopen(client, vm())
    assert locked_bytes(raw) == WRITER_BYTES


def test_row_12_extents_of_a_passed_descriptor_go_by_their_own_names(
    client: Client, daemon: Daemon, flat: FlatDisk
) -> None:
    hidden = flat.path.parent.with_name("hidden")
    client.add_fd(flat.path, fdset_id=1)
    for path in flat.files[1:]:
        client.getfd(path.name, path)
    flat.path.parent.rename(hidden)
    add(client, "/dev/fdset/1", "vmdk")
    image = image_of(daemon)
    assert [Path(file.name).name for file in image.files] == ["1", "a.bin", "b.bin"]
    reopen(client, vm(driver="vmdk", **DIRECT))
    assert modes(image) == {("r+", True)}
    image.pwrite(b"written", 0)
    assert (hidden / "a.bin").read_bytes()[:7] == b"written"


def test_row_13_descriptors_can_be_passed_at_all(
    client: Client, theirs: StorageDaemon, raw: Path
) -> None:
    for name in ("getfd", "closefd", "add-fd", "remove-fd", "query-fdsets"):
        with pytest.raises(StorageDaemonError, match="not been found"):
            theirs.execute(name, {})
    client.getfd("disk", raw)
    client.add_fd(raw)
    assert len(client.execute("query-fdsets")) == 1


@pytest.mark.parametrize(
    "line",
    [
        'RW 8 FLAT "../../secret" 0',
        'RW 8 FLAT "/etc/passwd" 0',
        'RW 8 FLAT "/dev/zero" 0',
        'RW 8 FLAT "disk.vmdk" 0',
        'RW 8 SPARSE "disk.vmdk"',
        'RDONLY 8 FLAT "a.bin" 0\nRW 8 FLAT "fifo" 0',
    ],
)
def test_row_14_hostile_descriptors_are_refused_and_the_daemon_lives(
    client: Client, flat: FlatDisk, line: str
) -> None:
    (flat.path.parents[2] / "secret").write_bytes(bytes(4096))
    os.mkfifo(flat.path.parent / "fifo")
    text = flat.path.read_text()
    lines = [each for each in text.splitlines() if not each.startswith("RW")]
    flat.path.write_text("\n".join([*lines[:6], line, *lines[6:]]) + "\n")
    error = client.refusal(
        "blockdev-add", driver="vmdk", node_name="vm", file=file_options(flat.path)
    )
    assert "disk.vmdk" in error.desc
    assert client.nodes() == {}
