"""What an image keeps of the descriptors that were passed in, and when that serves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fdstash.monitor import Daemon
from tests.support.disks import FlatDisk, make_flat, make_raw
from tests.support.kernel import descriptor_count
from tests.support.monitor import Client, file_options, image_of, node, reopen
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
    error = client.refusal("blockdev-reopen", options=[node("disk", file_options("gone/disk.raw"))])
    assert "gone/disk.raw" in error.desc
    assert client.nodes()["disk"]["file"] == raw.name
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
    client.execute("blockdev-add", driver="file", node_name="file", filename="file")
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
    client.execute("blockdev-add", driver="file", node_name="copy", filename=str(copy))
    moved = copy.rename(folder / "moved.raw")
    make_raw(folder, SIZE, name="copy.raw")
    client.execute("blockdev-add", **node("disk", file_options(raw)))
    reopen(client, node("disk", "copy"))
    assert image_of(daemon, "disk").pwrite(b"x", 0) == 1
    assert moved.read_bytes()[:1] == b"x"
