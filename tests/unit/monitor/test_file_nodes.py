"""Files that are nodes of their own, and images that are opened on them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash.monitor import Daemon
from tests.support.disks import SECTOR, ExtentSpec, FlatDisk, make_flat, make_raw
from tests.support.kernel import access_mode, is_direct
from tests.support.monitor import (
    Client,
    add_file,
    add_flat,
    file_options,
    image_of,
    node,
    refused_reopen,
    reopen,
)
from tests.support.seen import image_descriptors, locked_bytes

SIZE = 1 << 16


def add_by_files(client: Client, flat: FlatDisk) -> list[str]:
    """Add each file by itself, and the image `vm` on them; the names of their nodes."""
    names = [f"file{number}" for number in range(len(flat.files))]
    for name, path in zip(names, flat.files, strict=True):
        add_file(client, name, path)
    client.execute("blockdev-add", **node("vm", names[0], "vmdk", extents=names[1:]))
    return names


def test_files_added_by_themselves_serve_an_image_and_its_extents(
    client: Client, daemon: Daemon, flat: FlatDisk
) -> None:
    names = [f"file{number}" for number in range(len(flat.files))]
    for name, path in zip(names, flat.files, strict=True):
        add_file(client, name, path)
        path.rename(path.with_name(f"moved-{path.name}"))
    client.execute("blockdev-add", driver="vmdk", node_name="vm", file=names[0], extents=names[1:])
    assert [each["node-name"] for each in client.nodes()["vm"]["children"]] == names
    image = image_of(daemon, "vm")
    for path in flat.files:
        path.with_name(f"moved-{path.name}").rename(path)
    assert image.pread(image.size, 0) == flat.guest_bytes()
    error = client.refusal("blockdev-del", node_name=names[1])
    assert error.desc == f"Block device {names[1]} is in use: 'vm' is based on it"
    error = client.refusal("blockdev-add", driver="raw", node_name="r", file=names[1])
    assert "in use by 'vm'" in error.desc
    client.execute("blockdev-del", node_name="vm")
    client.execute("blockdev-add", driver="raw", node_name="r", file=names[1])
    client.execute("blockdev-del", node_name="r")
    for name in names:
        client.execute("blockdev-del", node_name=name)


@pytest.mark.parametrize("passed", [False, True])
def test_a_flag_is_changed_before_what_an_image_has_kept_is_looked_at(
    client: Client, daemon: Daemon, flat: FlatDisk, monkeypatch: pytest.MonkeyPatch, passed: bool
) -> None:
    """A description that nobody else holds serves for the least."""

    def told(*args: Any, **options: Any) -> Any:
        (report,) = reports = reopen_all(*args, **options)
        routes.append(set(report.routes.values()))
        return reports

    reopen_all, routes = fdstash.reopen_all, list[set[str]]()
    monkeypatch.setattr(fdstash, "reopen_all", told)
    names = [f"file{number}" for number in range(len(flat.files))]
    for name, path in zip(names, flat.files, strict=True):
        if passed:
            client.getfd(str(path), path)
        add_file(client, name, path)
        if passed:
            client.execute("closefd", fdname=str(path))
    client.execute("blockdev-add", driver="vmdk", node_name="vm", file=names[0], extents=names[1:])
    for direct in (True, False, True, False):
        reopen(client, node("vm", names[0], "vmdk", cache={"direct": direct}))
    # The first leaves the descriptions behind that the image shares with what it was opened from.
    assert routes == [{"proc"}, {"setfl"}, {"setfl"}, {"setfl"}]
    reopen(client, node("vm", names[0], "vmdk", read_only=True))
    reopen(client, node("vm", names[0], "vmdk"))
    assert routes[4:] == [{"proc"}, {"stash"}]


def test_a_node_of_a_file_is_that_file_whatever_its_path_names_by_now(
    client: Client, daemon: Daemon, raw: Path, folder: Path
) -> None:
    other = make_raw(folder, SIZE, name="other.raw")
    for name, path in (("a", raw), ("b", other)):
        add_file(client, name, path)
    client.execute("blockdev-add", **node("disk", "a"))
    wanted = other.read_bytes()
    other.rename(folder / "moved.raw")
    other.write_bytes(bytes(SIZE))
    reopen(client, node("disk", "b"))
    assert image_of(daemon, "disk").pread(SIZE, 0) == wanted


def test_extents_that_were_given_stay_where_the_path_of_the_first_file_changes(
    client: Client, daemon: Daemon, flat: FlatDisk, folder: Path
) -> None:
    names = add_by_files(client, flat)
    wanted = flat.guest_bytes()
    copy = shutil.copy(flat.path, folder / "copy.vmdk")
    add_file(client, "copy", copy)
    extent = flat.files[1]
    size = extent.stat().st_size
    extent.rename(folder / "moved.bin")
    extent.write_bytes(bytes(size))
    reopen(client, node("vm", "copy", "vmdk", extents=names[1:]))
    image = image_of(daemon, "vm")
    assert image.pread(image.size, 0) == wanted


def test_files_that_stay_an_images_are_in_use_after_another_filename(
    client: Client, flat: FlatDisk, folder: Path
) -> None:
    names = add_by_files(client, flat)
    copy = shutil.copy(flat.path, folder / "copy.vmdk")
    reopen(client, {**file_options(copy), "node-name": names[0]})
    for name in names:
        error = client.refusal("blockdev-del", node_name=name)
        assert "is in use: 'vm' is based on it" in error.desc
    client.execute("blockdev-del", node_name="vm")
    for name in names:
        client.execute("blockdev-del", node_name=name)


def test_another_file_node_takes_the_place_of_the_first(
    client: Client, daemon: Daemon, raw: Path, folder: Path
) -> None:
    copy = make_raw(folder, SIZE, name="copy.img")
    for name, path in (("one", raw), ("two", copy)):
        add_file(client, name, path)
    client.execute("blockdev-add", driver="raw", node_name="disk", file="one")
    reopen(client, node("disk", "two"))
    assert image_of(daemon, "disk").pwrite(b"x", 0) == 1
    assert copy.read_bytes()[:1] == b"x"
    client.execute("blockdev-del", node_name="one")
    assert "in use" in client.refusal("blockdev-del", node_name="two").desc


def test_a_file_by_itself_is_reopened_too(client: Client, daemon: Daemon, raw: Path) -> None:
    add_file(client, "file", raw)
    raw = raw.rename(raw.with_name("renamed"))
    name = client.nodes()["file"]["file"]
    reopen(client, file_options(name, **{"node-name": "file", "read-only": True}))
    assert client.nodes()["file"]["ro"] is True
    (fd,) = image_descriptors(raw)
    assert access_mode(fd) == "r"
    reopen(client, file_options(name, **{"node-name": "file", "cache": {"direct": True}}))
    (fd,) = image_descriptors(raw)
    assert access_mode(fd) == "r+"
    assert is_direct(fd)


def test_files_that_are_no_longer_an_images_are_free(
    client: Client, daemon: Daemon, flat: FlatDisk, folder: Path
) -> None:
    names = add_by_files(client, flat)
    moved = folder / "moved"
    moved.mkdir()
    for path in flat.files:
        shutil.copy(path, moved / path.name)
    reopen(client, {**file_options(moved / flat.path.name), "node-name": names[0]})
    assert image_of(daemon, "vm").pread(flat.size, 0) == flat.guest_bytes()
    for name in names[1:]:
        client.execute("blockdev-del", node_name=name)


@pytest.mark.parametrize("name", ["other", "x", "free", "vm", "#block999", "new", "own"])
@pytest.mark.parametrize("moves", [False, True])
def test_a_name_in_options_takes_no_node_of_others(
    client: Client,
    daemon: Daemon,
    flat: FlatDisk,
    folder: Path,
    name: str,
    *,
    moves: bool,
) -> None:
    """`new` is nobody's, and may be given where parts are made; `own` is what it is called."""
    raw = make_raw(folder, SIZE)
    add_file(client, "x", raw)
    client.execute("blockdev-add", **node("other", "x"))
    free = make_raw(folder, SIZE, name="free.img")
    add_file(client, "free", free)
    add_flat(client, flat)
    wanted = flat.guest_bytes()
    nodes = client.nodes()
    extents = [file_options(path) for path in flat.files[1:]]
    own = nodes["vm"]["children"][1]["node-name"]
    name = own if name == "own" else name
    extents[0]["node-name"] = name
    copy = shutil.copy(flat.path, folder / "copy.vmdk") if moves else flat.path
    options = node("vm", file_options(copy), "vmdk", extents=extents)
    if name in (own, "new" if moves else own):
        reopen(client, options)
        assert client.nodes()["vm"]["children"][1]["node-name"] == name
        assert client.nodes()[name]["file"] == str(flat.files[1])
    else:
        refused = refused_reopen(client, options)
        reasons = {"new": "Cannot change the option 'node-name'", "#block999": "Invalid node-name"}
        assert reasons.get(name, f"Duplicate nodes with node-name='{name}'") in refused
    image = image_of(daemon, "vm")
    assert image.pread(image.size, 0) == wanted
    assert image_of(daemon, "other").pread(SIZE, 0) == raw.read_bytes()
    assert client.refusal("blockdev-add", **node("third", "x")).desc == (
        "Node 'x' is in use by 'other'"
    )
    client.execute("blockdev-add", **node("third", "free"))
    for each in ("third", "other", "vm"):
        client.execute("blockdev-del", node_name=each)
    for each in ("x", "free"):
        client.execute("blockdev-del", node_name=each)
    assert client.nodes() == {}


def test_two_images_of_one_reopen_take_no_name_of_each_other(
    client: Client, daemon: Daemon, raw: Path, folder: Path
) -> None:
    for name in ("one", "two"):
        path = make_raw(folder, SIZE, name=name)
        shutil.copy(path, folder / f"copy-{name}")
        client.execute("blockdev-add", **node(name, file_options(path)))
    both = [
        node(name, file_options(folder / f"copy-{name}", **{"node-name": "file"}))
        for name in ("one", "two")
    ]
    error = "Duplicate nodes with node-name='file'"
    assert refused_reopen(client, *both) == error
    reopen(client, both[0])
    assert refused_reopen(client, *both[1:]) == error
    assert image_of(daemon, "two").pwrite(b"x", 0) == 1


def test_a_file_that_stays_an_images_is_held_as_the_image_has_it(
    client: Client, flat: FlatDisk, folder: Path
) -> None:
    """Named with other options, it is what those lead to; also when the image has gone."""
    names = add_by_files(client, flat)
    moved = folder / "moved"
    moved.mkdir()
    copies = [Path(shutil.copy(path, moved / path.name)) for path in flat.files]
    first, *extents = (
        file_options(path, **{"node-name": name}) for name, path in zip(names, copies, strict=True)
    )
    reopen(client, node("vm", first, "vmdk", extents=extents))
    for path in flat.files:
        assert image_descriptors(path) == []
    client.execute("blockdev-del", node_name="vm")
    for name, path in zip(names, copies, strict=True):
        assert client.nodes()[name]["file"] == str(path)
        client.execute("blockdev-add", **node(f"{name}-raw", name))
        client.execute("blockdev-del", node_name=f"{name}-raw")
        client.execute("blockdev-del", node_name=name)


def test_a_file_that_stays_an_images_is_told_in_the_mode_that_it_is_held_in(
    client: Client, raw: Path, folder: Path
) -> None:
    copy = make_raw(folder, SIZE, name="copy.raw")
    add_file(client, "file", raw)
    client.execute("blockdev-add", **node("disk", "file"))
    moved = file_options(copy, **{"node-name": "file"})
    reopen(client, node("disk", moved, read_only=True, cache={"direct": True}))
    client.execute("blockdev-del", node_name="disk")
    (fd,) = image_descriptors(copy)
    told = client.nodes()["file"]
    assert (access_mode(fd), is_direct(fd)) == ("r", True)
    assert (told["ro"], told["cache"]["direct"]) == (True, True)


def test_a_file_by_itself_holds_no_locks_after_it_was_resized(client: Client, raw: Path) -> None:
    add_file(client, "file", raw)
    client.execute("block_resize", node_name="file", size=2 * SIZE)
    assert raw.stat().st_size == 2 * SIZE
    assert locked_bytes(raw) == []


@pytest.mark.parametrize("twice", ["one node", "one file", "the descriptor file"])
def test_one_file_is_no_two_extents(
    client: Client, flat: FlatDisk, folder: Path, twice: str
) -> None:
    first = flat.path if twice == "the descriptor file" else flat.files[1]
    for name in ("x", "y"):
        add_file(client, name, first, **{"read-only": True})
    extents = ["x", "x" if twice == "one node" else "y"]
    options = node("vm", file_options(flat.path), "vmdk", extents=extents, read_only=True)
    number = 0 if twice == "the descriptor file" else 1
    assert client.refusal("blockdev-add", **options).desc == (
        f"'extents.{number}' is a file that the image has already"
    )
    for name in ("x", "y"):
        client.execute("blockdev-del", node_name=name)
    assert client.nodes() == {}


def test_extents_that_are_nodes_stay_where_the_filename_is_in_another_folder(
    client: Client, daemon: Daemon, flat: FlatDisk, folder: Path
) -> None:
    names = add_by_files(client, flat)
    wanted = flat.guest_bytes()
    moved = folder / "moved"
    moved.mkdir()
    for path in flat.files:
        (moved / path.name).write_bytes(bytes(path.stat().st_size))
    copy = shutil.copy(flat.path, moved / flat.path.name)
    reopen(client, node("vm", file_options(copy), "vmdk", extents=names[1:]))
    image = image_of(daemon, "vm")
    assert image.pread(image.size, 0) == wanted
    assert [each["node-name"] for each in client.nodes()["vm"]["children"]] == names


def test_a_node_that_turns_out_to_be_the_file_of_another_extent_stays_free(
    client: Client, daemon: Daemon, folder: Path
) -> None:
    lines = [ExtentSpec("RDONLY", 16, name=name) for name in ("a.bin", "b.bin")]
    old, new = make_flat(folder / "old", lines), make_flat(folder / "new", lines)
    add_flat(client, old, read_only=True)
    first = client.nodes()["vm"]["children"][1]["node-name"]
    add_file(client, "same", new.files[1])
    extents = [first, "same"]
    reopen(client, node("vm", file_options(new.path), "vmdk", extents=extents, read_only=True))
    children = [each["node-name"] for each in client.nodes()["vm"]["children"]]
    assert children == ["vm-file", first]
    content = new.files[1].read_bytes()[: 16 * SECTOR]
    assert image_of(daemon, "vm").pread(64 * SECTOR, 0) == 2 * content
    client.execute("blockdev-del", node_name="same")
