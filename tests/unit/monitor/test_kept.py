"""What an image keeps of the descriptors that were passed in, and when that serves."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from fdstash.monitor import Daemon
from fdstash.stash import FDStash
from tests.support.disks import ExtentSpec, FlatDisk, make_flat, make_raw
from tests.support.kernel import descriptor_count, descriptors_left
from tests.support.monitor import (
    Client,
    CommandFailed,
    add_file,
    add_flat,
    file_options,
    image_of,
    node,
    refused_reopen,
    reopen,
)
from tests.support.other_user import without_permissions
from tests.support.seen import image_descriptors

SIZE = 1 << 16


def add_passed(client: Client, name: str, path: Path, *, filename: str | None = None) -> None:
    """Add the raw image `disk`, opened with a descriptor that is passed for that alone."""
    client.getfd(name, path)
    client.execute("blockdev-add", **node("disk", file_options(filename or name)))
    client.execute("closefd", fdname=name)


def pass_all(client: Client, disk: FlatDisk, name: str, *flags: int) -> list[str]:
    """Pass the files of a disk: its descriptor file under that name, extents under their own."""
    names = [name, *(path.name for path in disk.files[1:])]
    for each, path in zip(names, disk.files, strict=True):
        for mode in flags:
            client.getfd(each, path, mode)
    return names


def test_what_is_kept_serves_when_whoever_passed_it_has_gone(
    client: Client, daemon: Daemon, raw: Path
) -> None:
    add_passed(client, "disk.raw", raw)
    raw.unlink()
    for read_only in (True, False):
        reopen(client, node("disk", file_options("disk.raw"), read_only=read_only))
    assert image_of(daemon, "disk").pwrite(b"x", 0) == 1


@pytest.mark.parametrize("folder_is_named", [False, True])
def test_it_does_not_serve_a_file_of_the_same_name_in_another_folder(
    client: Client, daemon: Daemon, raw: Path, folder: Path, *, folder_is_named: bool
) -> None:
    add_passed(client, raw.name, raw, filename=str(raw) if folder_is_named else None)
    before = raw.read_bytes()
    (folder / "copy").mkdir()
    copy = make_raw(folder / "copy", SIZE, name=raw.name)
    reopen(client, node("disk", file_options(copy)))
    assert image_of(daemon, "disk").pwrite(b"moved", 0) == 5
    assert copy.read_bytes()[:5] == b"moved"
    assert raw.read_bytes() == before


def test_it_serves_no_path_that_leads_nowhere(client: Client, daemon: Daemon, raw: Path) -> None:
    add_passed(client, raw.name, raw)
    assert "gone/disk.raw" in refused_reopen(client, node("disk", file_options("gone/disk.raw")))
    assert image_of(daemon, "disk").pwrite(b"x", 0) == 1


def test_what_is_passed_now_is_not_mixed_with_what_was_passed_under_the_same_names(
    client: Client, daemon: Daemon, tmp_path: Path
) -> None:
    """The new files were passed in one mode, the old ones are kept in both."""
    old, new = make_flat(tmp_path / "old", seed=1), make_flat(tmp_path / "new", seed=2)
    for flags in (os.O_RDONLY, os.O_RDWR):
        names = pass_all(client, old, "old.vmdk", flags)
        if flags == os.O_RDONLY:
            file = file_options("old.vmdk")
            client.execute("blockdev-add", **node("vm", file, "vmdk", read_only=True))
        else:
            reopen(client, node("vm", file, "vmdk"))
    for name in names:
        client.execute("closefd", fdname=name)
    pass_all(client, new, "new.vmdk", os.O_RDWR)
    reopen(client, node("vm", file_options("new.vmdk"), "vmdk", read_only=True))
    image = image_of(daemon, "vm")
    assert image.pread(image.size, 0) == new.guest_bytes()


def test_what_no_longer_serves_is_closed(
    client: Client, daemon: Daemon, raw: Path, folder: Path
) -> None:
    add_passed(client, raw.name, raw)
    counts = []
    for number in range(8):
        path = make_raw(folder, SIZE, name=f"disk{number}.raw")
        client.getfd(path.name, path)
        reopen(client, node("disk", file_options(path.name)))
        client.execute("closefd", fdname=path.name)
        counts.append(descriptor_count())
    assert image_descriptors(raw) == []
    assert len(set(counts)) == 1
    path.unlink()
    for read_only in (True, False):
        reopen(client, node("disk", file_options(path.name), read_only=read_only))


def test_a_file_by_itself_becomes_the_one_that_is_passed(
    client: Client, daemon: Daemon, raw: Path, folder: Path
) -> None:
    other = make_raw(folder, SIZE, name="other.raw")
    client.getfd("file", raw)
    add_file(client, "file", "file")
    client.getfd("file", other)
    reopen(client, file_options("file", **{"node-name": "file"}))
    assert image_descriptors(raw) == []
    client.execute("blockdev-add", **node("disk", "file"))
    assert image_of(daemon, "disk").pwrite(b"x", 0) == 1
    assert other.read_bytes()[:1] == b"x"


def test_a_file_node_serves_though_its_path_names_another_file_by_now(
    client: Client, daemon: Daemon, raw: Path, folder: Path
) -> None:
    copy = make_raw(folder, SIZE, name="copy.raw")
    add_file(client, "copy", copy)
    moved = copy.rename(folder / "moved.raw")
    make_raw(folder, SIZE, name="copy.raw")
    client.execute("blockdev-add", **node("disk", file_options(raw)))
    reopen(client, node("disk", "copy"))
    assert image_of(daemon, "disk").pwrite(b"x", 0) == 1
    assert moved.read_bytes()[:1] == b"x"


def test_an_extent_of_another_folder_is_not_served_by_one_of_the_same_last_name(
    client: Client, daemon: Daemon, folder: Path
) -> None:
    old = make_flat(folder, [ExtentSpec("RW", 16, name="one/e.bin")], name="one.vmdk", seed=1)
    new = make_flat(folder, [ExtentSpec("RW", 16, name="two/e.bin")], name="two.vmdk", seed=2)
    client.getfd("e.bin", old.files[1])
    client.execute("blockdev-add", **node("vm", file_options(old.path), "vmdk"))
    client.execute("closefd", fdname="e.bin")
    reopen(client, node("vm", file_options(new.path), "vmdk"))
    image = image_of(daemon, "vm")
    assert image.pread(image.size, 0) == new.guest_bytes()


@pytest.mark.parametrize("how", ["set", "whole path"])
def test_what_is_passed_now_under_its_last_name_serves_before_what_was_kept(
    client: Client, daemon: Daemon, folder: Path, how: str
) -> None:
    old = make_flat(folder, [ExtentSpec("RW", 16, name="e.bin")], seed=1)
    new = make_flat(folder / "new", [ExtentSpec("RW", 16, name="e.bin")], seed=2)
    copy = shutil.copy(new.path, folder / "copy.vmdk")
    if how == "set":
        for number, path in enumerate((*old.files, new.path)):
            client.add_fd(path, fdset_id=number)
        first, second = "/dev/fdset/0", "/dev/fdset/2"
        extents = [file_options("/dev/fdset/1")]
        client.execute("blockdev-add", **node("vm", file_options(first), "vmdk", extents=extents))
    else:
        first, second = str(old.path), copy
        client.getfd(str(old.files[1]), old.files[1])
        client.execute("blockdev-add", **node("vm", file_options(first), "vmdk"))
        client.execute("closefd", fdname=str(old.files[1]))
    client.getfd("e.bin", new.files[1])
    reopen(client, node("vm", file_options(second), "vmdk"))
    image = image_of(daemon, "vm")
    assert image.pread(image.size, 0) == new.guest_bytes()


@pytest.mark.root
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
@pytest.mark.parametrize("sandboxed", [False, True])
def test_what_is_kept_stays_where_another_file_gets_its_name(
    client: Client, daemon: Daemon, folder: Path, flags: int, *, sandboxed: bool
) -> None:
    """A set's number is used again as soon as it is free."""
    own, other = (make_raw(folder, SIZE, name=name, seed=i) for i, name in enumerate("ab"))
    for path in (own, other):
        path.chmod(0o600)
    name = "/dev/fdset/0"

    def change(*, read_only: bool) -> None:
        with without_permissions() if sandboxed else contextlib.nullcontext():
            reopen(client, node("disk", file_options(name), read_only=read_only))

    client.add_fd(own, fdset_id=0)
    client.execute("blockdev-add", **node("disk", file_options(name, locking="off")))
    client.add_fd(own, os.O_RDONLY, fdset_id=0)
    change(read_only=True)
    client.execute("remove-fd", fdset_id=0)
    client.add_fd(other, flags, fdset_id=0)
    for read_only in (False, True, False):
        change(read_only=read_only)
    client.execute("remove-fd", fdset_id=0)
    client.add_fd(own, os.O_RDONLY, fdset_id=0)
    for read_only in (True, False):
        change(read_only=read_only)
    assert image_descriptors(other) == []
    assert image_of(daemon, "disk").pwrite(b"x", 0) == 1
    assert own.read_bytes()[:1] == b"x"


def test_a_reopen_that_finds_no_room_for_descriptors_has_changed_nothing(
    client: Client, daemon: Daemon, folder: Path
) -> None:
    flat = make_flat(folder, [ExtentSpec("RW", 8, name=f"e{number}.bin") for number in range(6)])
    for path in flat.files:
        for mode in (os.O_RDWR, os.O_RDONLY):
            for flags in (mode, mode | os.O_DIRECT):
                client.add_fd(path, flags, opaque=str(path))
    add_flat(client, flat)
    image, kept = image_of(daemon, "vm"), daemon.table.get("vm")
    names = kept.kept.names()
    refused = 0
    for left in range(0, 200, 3):
        mode = image.mode
        options = node("vm", file_options(flat.path), "vmdk", read_only=mode == "r+")
        try:
            with descriptors_left(left):
                reopen(client, options)
        except CommandFailed:
            refused += 1
            assert image.mode == mode
            assert kept.kept.names() == names
        else:
            assert image.mode != mode
    assert 0 < refused < 60


def test_what_is_kept_is_never_seen_closed(
    client: Client, daemon: Daemon, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_passed(client, "a", raw)
    kept = daemon.table.get("disk")
    close, seen = FDStash.close, list[list[str]]()

    def close_and_look(stash: FDStash) -> None:
        close(stash)
        seen.append(kept.kept.names())

    monkeypatch.setattr(FDStash, "close", close_and_look)
    client.getfd("a", raw)
    reopen(client, node("disk", file_options("a"), cache={"direct": True}))
    assert seen
    assert all(names == ["a"] for names in seen)


@pytest.mark.root
def test_a_header_is_read_in_the_mode_that_was_passed(client: Client, folder: Path) -> None:
    flat = make_flat(folder, [ExtentSpec("RW", 16, name="e.bin")])
    for number, path in enumerate(flat.files):
        path.chmod(0o600)
        client.add_fd(path, fdset_id=number)
    options = node(
        "vm",
        file_options("/dev/fdset/0", locking="off"),
        "vmdk",
        extents=[file_options("/dev/fdset/1", locking="off")],
    )
    with without_permissions():
        client.run("blockdev-add", options)


def test_a_name_is_one_file_whichever_way_it_was_passed(
    client: Client, daemon: Daemon, folder: Path
) -> None:
    """What a client named itself comes before what a set calls the same, also in another mode."""
    own, other = (make_raw(folder, SIZE, name=name, seed=i) for i, name in enumerate("ab"))
    client.add_fd(other, os.O_RDONLY, opaque="disk")
    client.getfd("disk", own)
    client.execute("blockdev-add", **node("disk", file_options("disk"), read_only=True))
    assert image_of(daemon, "disk").pread(SIZE, 0) == own.read_bytes()


# -- files by themselves


@pytest.mark.parametrize("target", ["copy/disk.raw", "gone/disk.raw"])
def test_a_file_by_itself_moves_to_what_is_there(
    client: Client, raw: Path, folder: Path, target: str
) -> None:
    client.getfd(raw.name, raw)
    add_file(client, "file", raw.name)
    client.execute("closefd", fdname=raw.name)
    (folder / "copy").mkdir()
    copy = make_raw(folder / "copy", SIZE, name=raw.name)
    options = file_options(folder / target, **{"node-name": "file"})
    if target.startswith("gone"):
        assert "No such file" in refused_reopen(client, options)
    else:
        reopen(client, options)
        assert image_descriptors(raw) == []
        assert image_descriptors(copy) != []


@pytest.mark.parametrize("reopened", [False, True])
def test_a_file_node_serves_before_what_is_passed_under_its_name(
    client: Client, daemon: Daemon, raw: Path, folder: Path, *, reopened: bool
) -> None:
    own, other = (make_raw(folder, SIZE, name=name, seed=i) for i, name in enumerate("ab"))
    client.getfd("x.raw", own)
    add_file(client, "x", "x.raw")
    client.getfd("x.raw", other)
    if reopened:
        client.execute("blockdev-add", **node("disk", file_options(raw)))
        reopen(client, node("disk", "x"))
    else:
        client.execute("blockdev-add", **node("disk", "x"))
    assert image_of(daemon, "disk").pread(SIZE, 0) == own.read_bytes()


def test_what_was_passed_for_another_file_and_served_nothing_is_not_kept(
    client: Client, daemon: Daemon, folder: Path
) -> None:
    """It is of a mode that no reopen wants meanwhile; under its name it would serve the next."""
    here, there = make_flat(folder, seed=1), make_flat(folder / "there", seed=2)
    client.execute("blockdev-add", **node("vm", file_options(here.path), "vmdk"))
    for path in there.files[1:]:
        client.getfd(path.name, path)
    reopen(client, node("vm", file_options(here.path), "vmdk", cache={"direct": True}))
    for path in there.files[1:]:
        client.execute("closefd", fdname=path.name)
    assert image_descriptors(*there.files) == []
    copy = shutil.copy(here.path, folder / "copy.vmdk")
    reopen(client, node("vm", file_options(copy), "vmdk"))
    image = image_of(daemon, "vm")
    assert image.pread(image.size, 0) == here.guest_bytes()


def test_a_file_by_itself_does_not_serve_a_file_of_the_same_name_in_a_folder(
    client: Client, daemon: Daemon, raw: Path
) -> None:
    other = make_raw(raw.parent, SIZE, name="other.raw", seed=2)
    client.getfd(raw.name, other)
    add_file(client, "file", raw.name)
    client.execute("closefd", fdname=raw.name)
    reopen(client, file_options(raw, **{"node-name": "file"}))
    assert image_descriptors(other) == []
    client.execute("blockdev-add", **node("disk", "file"))
    assert image_of(daemon, "disk").pread(SIZE, 0) == raw.read_bytes()


def test_what_is_passed_for_a_file_by_itself_serves_first_under_a_shorter_name_too(
    client: Client, raw: Path
) -> None:
    other = make_raw(raw.parent, SIZE, name="other.raw")
    add_file(client, "file", raw)
    client.getfd(raw.name, other)
    reopen(client, file_options(raw, **{"node-name": "file"}))
    assert image_descriptors(raw) == []


def test_what_is_passed_serves_before_what_is_kept_under_a_longer_name(
    client: Client, daemon: Daemon, folder: Path
) -> None:
    disk, other = make_flat(folder, seed=1), make_flat(folder / "other", seed=2)
    for path in disk.files[1:]:
        client.getfd(str(path), path)
    client.execute("blockdev-add", **node("vm", file_options(disk.path), "vmdk"))
    for path, stranger in zip(disk.files[1:], other.files[1:], strict=True):
        client.execute("closefd", fdname=str(path))
        client.getfd(path.name, stranger)
    copy = shutil.copy(disk.path, folder / "copy.vmdk")
    reopen(client, node("vm", file_options(copy), "vmdk"))
    image = image_of(daemon, "vm")
    assert image.pread(image.size, 0) == other.guest_bytes()
