"""Nodes: added, reopened all or none, resized, exported, deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import Image, ImageIOError
from fdstash.monitor import Daemon
from fdstash.monitor.nodes import ImageNode
from tests.support.disks import FlatDisk, make_flat, make_raw, noise
from tests.support.kernel import access_mode, is_direct
from tests.support.monitor import Client, add_flat, add_raw, file_options, node, reopen
from tests.support.seen import READER_BYTES, WRITER_BYTES, image_descriptors, locked_bytes

SIZE = 1 << 16


@pytest.fixture
def raw(folder: Path) -> Path:
    return make_raw(folder, SIZE)


@pytest.fixture
def flat(folder: Path) -> FlatDisk:
    return make_flat(folder)


def image_of(daemon: Daemon, name: str) -> Image:
    found = daemon.table.get(name)
    assert isinstance(found, ImageNode)
    return found.image


# -- blockdev-add


def test_an_image_and_each_of_its_files_are_nodes(client: Client, flat: FlatDisk) -> None:
    add_flat(client, flat)
    nodes = client.nodes()
    children = nodes["vm"]["children"]
    names = [each["node-name"] for each in children]
    assert [each["child"] for each in children] == ["file", *(f"extents.{n}" for n in range(4))]
    assert names[0] == "vm-file"
    assert [nodes[name]["file"] for name in names] == [str(path) for path in flat.files]
    assert set(nodes) == {"vm", *names}
    assert nodes["vm"]["image"]["virtual-size"] == flat.size
    assert nodes["vm"]["drv"] == nodes["vm"]["image"]["format"] == "vmdk"
    (block,) = client.execute("query-block")
    assert block["inserted"] == nodes["vm"]


def test_what_is_said_of_files_is_what_the_kernel_says(client: Client, flat: FlatDisk) -> None:
    add_flat(client, flat, read_only=True, cache={"direct": True})
    for name, info in client.nodes().items():
        assert (info["ro"], info["cache"]["direct"]) == (True, True), name
    for fd in image_descriptors(*flat.files):
        assert access_mode(fd) == "r"


@pytest.mark.parametrize(
    ("cache", "mode"),
    [
        ({}, "writeback"),
        ({"direct": True}, "none"),
        ({"no-flush": True}, "unsafe"),
        ({"direct": False, "no-flush": False}, "writeback"),
    ],
)
def test_cache_options_are_qemus(
    client: Client, daemon: Daemon, raw: Path, cache: dict[str, bool], mode: str
) -> None:
    add_raw(client, raw, cache=cache)
    assert image_of(daemon, "disk").cache == mode


def test_cache_options_that_exclude_each_other_are_refused(client: Client, raw: Path) -> None:
    error = client.refusal(
        "blockdev-add",
        driver="raw",
        node_name="disk",
        file=file_options(raw, cache={"direct": True, "no-flush": True}),
    )
    assert "exclude each other" in error.desc


def test_raw_takes_offset_and_size(client: Client, daemon: Daemon, raw: Path) -> None:
    add_raw(client, raw, offset=512, size=1024)
    image = image_of(daemon, "disk")
    assert image.pread(4096, 0) == noise(SIZE, 1)[512:1536]


def test_auto_read_only_falls_back_where_the_file_cannot_be_written(
    client: Client, tmp_path: Path, folder: Path
) -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.close(fd)
    raw = make_raw(folder, SIZE)
    add_raw(client, raw, auto_read_only=True)
    assert client.nodes()["disk"]["ro"] is False


def test_names_are_checked_and_taken_once(client: Client, raw: Path, flat: FlatDisk) -> None:
    file = file_options(raw)
    for name in ("1disk", "", "#block001", "a b", "x" * 32):
        client.refusal("blockdev-add", driver="raw", node_name=name, file=file)
    error = client.refusal("blockdev-add", driver="raw", file=file)
    assert error.desc == "'node-name' must be specified for the root node"
    add_flat(client, flat)
    for name in ("vm", "vm-file"):
        error = client.refusal("blockdev-add", driver="raw", node_name=name, file=file)
        assert error.desc == f"Duplicate nodes with node-name='{name}'"
    both = file_options(raw, **{"node-name": "twice"})
    client.refusal("blockdev-add", driver="raw", node_name="twice", file=both)
    add_raw(client, raw, "twice")


def test_an_image_that_cannot_be_opened_leaves_no_node_and_no_descriptor(
    client: Client, flat: FlatDisk
) -> None:
    flat.files[-1].rename(flat.files[-1].with_name("gone"))
    error = client.refusal(
        "blockdev-add", driver="vmdk", node_name="vm", file=file_options(flat.path)
    )
    assert flat.files[-1].name in error.desc
    assert client.nodes() == {}
    assert image_descriptors(*flat.files[:-1]) == []
    flat.files[-1].with_name("gone").rename(flat.files[-1])
    add_flat(client, flat)


def test_files_added_by_themselves_serve_an_image_and_its_extents(
    client: Client, daemon: Daemon, flat: FlatDisk
) -> None:
    names = [f"file{number}" for number in range(len(flat.files))]
    for name, path in zip(names, flat.files, strict=True):
        client.execute("blockdev-add", driver="file", node_name=name, filename=str(path))
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
        client.execute("blockdev-add", driver="file", node_name=name, filename=str(path))
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
        client.execute("blockdev-add", driver="file", node_name=name, filename=str(path))
    client.execute("blockdev-add", **node("disk", "a"))
    wanted = other.read_bytes()
    other.rename(folder / "moved.raw")
    other.write_bytes(bytes(SIZE))
    reopen(client, node("disk", "b"))
    assert image_of(daemon, "disk").pread(SIZE, 0) == wanted


def test_extents_that_were_given_stay_where_the_path_of_the_first_file_changes(
    client: Client, daemon: Daemon, flat: FlatDisk, folder: Path
) -> None:
    names = [f"file{number}" for number in range(len(flat.files))]
    for name, path in zip(names, flat.files, strict=True):
        client.execute("blockdev-add", driver="file", node_name=name, filename=str(path))
    client.execute("blockdev-add", **node("vm", names[0], "vmdk", extents=names[1:]))
    wanted = flat.guest_bytes()
    copy = shutil.copy(flat.path, folder / "copy.vmdk")
    client.execute("blockdev-add", driver="file", node_name="copy", filename=str(copy))
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
    names = [f"file{number}" for number in range(len(flat.files))]
    for name, path in zip(names, flat.files, strict=True):
        client.execute("blockdev-add", driver="file", node_name=name, filename=str(path))
    client.execute("blockdev-add", **node("vm", names[0], "vmdk", extents=names[1:]))
    copy = shutil.copy(flat.path, folder / "copy.vmdk")
    reopen(client, {**file_options(copy), "node-name": names[0]})
    for name in names:
        error = client.refusal("blockdev-del", node_name=name)
        assert "is in use: 'vm' is based on it" in error.desc
    client.execute("blockdev-del", node_name="vm")
    for name in names:
        client.execute("blockdev-del", node_name=name)


def test_an_image_below_is_named_by_its_node(client: Client, folder: Path) -> None:
    base, top = folder / "base.vmdk", folder / "top.vmdk"
    fdstash.create(base, "vmdk", 1 << 20, subformat="monolithicSparse")
    fdstash.create(top, "vmdk", 1 << 20, subformat="monolithicSparse", backing_file=str(base))
    base = base.rename(folder / "renamed.vmdk")
    error = client.refusal("blockdev-add", driver="vmdk", node_name="top", file=file_options(top))
    assert "base.vmdk" in error.desc
    client.execute(
        "blockdev-add", driver="vmdk", node_name="base", file=file_options(base), read_only=True
    )
    client.execute(
        "blockdev-add", driver="vmdk", node_name="top", file=file_options(top), backing="base"
    )
    told = client.nodes()["top"]
    assert told["backing_file"] == str(base)
    assert told["children"][-1] == {"child": "backing", "node-name": "base"}
    assert "'top' is based on it" in client.refusal("blockdev-del", node_name="base").desc
    client.execute("blockdev-del", node_name="top")
    client.execute("blockdev-del", node_name="base")


# -- blockdev-reopen


def test_a_reopen_changes_every_file(client: Client, daemon: Daemon, flat: FlatDisk) -> None:
    add_flat(client, flat)
    image = image_of(daemon, "vm")
    for options in (
        node("vm", "vm-file", "vmdk", cache={"direct": True}),
        node("vm", file_options(flat.path), "vmdk", read_only=True),
        file_options(flat.path, **{"node-name": "vm-file", "cache": {"direct": True}}),
        node("vm", "vm-file", "vmdk"),
    ):
        reopen(client, options)
        direct = options.get("cache", {}).get("direct", False)
        assert {f.direct for f in image.files} == {direct}
        told = client.nodes()
        for child in told["vm"]["children"]:
            info = told[child["node-name"]]
            assert info["cache"]["direct"] is direct
            assert info["ro"] is (image.mode == "r")
        assert image.pread(image.size, 0) == flat.guest_bytes()
        reading = locked_bytes(flat.files[1])
        assert reading == (READER_BYTES if image.mode == "r" else WRITER_BYTES)


def test_several_images_are_reopened_all_or_none(
    client: Client, daemon: Daemon, raw: Path, flat: FlatDisk
) -> None:
    add_raw(client, raw)
    add_flat(client, flat)
    both = [image_of(daemon, "disk"), image_of(daemon, "vm")]
    direct = {"cache": {"direct": True}}
    good = node("disk", file_options(raw), **direct)
    bad = node("vm", file_options(flat.path.with_name("none.vmdk")), "vmdk", **direct)
    with pytest.raises(Exception, match=r"none\.vmdk"):
        reopen(client, good, bad)
    assert [image.cache for image in both] == ["writeback", "writeback"]
    reopen(client, good, node("vm", "vm-file", "vmdk", **direct))
    assert [image.cache for image in both] == ["none", "none"]


def test_another_filename_is_another_path_and_the_nodes_keep_their_names(
    client: Client, daemon: Daemon, flat: FlatDisk, folder: Path
) -> None:
    add_flat(client, flat)
    names = [each["node-name"] for each in client.nodes()["vm"]["children"]]
    copy = folder / "copy"
    shutil.copytree(flat.path.parent, copy, ignore=lambda _, found: {"copy", *_sockets(found)})
    reopen(client, node("vm", file_options(copy / flat.path.name), "vmdk"))
    told = client.nodes()
    assert [each["node-name"] for each in told["vm"]["children"]] == names
    assert all(Path(info["file"]).parent == copy for info in told.values())
    image_of(daemon, "vm").pwrite(b"in the copy", 0)
    assert image_descriptors(*flat.files) == []
    # And by the node of the file.
    reopen(client, file_options(flat.path, **{"node-name": "vm-file"}))
    assert client.nodes()["vm"]["file"] == str(flat.path)
    assert image_of(daemon, "vm").pread(11, 0) == flat.guest_bytes()[:11]


def _sockets(names: list[str]) -> set[str]:
    return {name for name in names if name.startswith("qmp-")}


def test_another_file_node_takes_the_place_of_the_first(
    client: Client, daemon: Daemon, raw: Path, folder: Path
) -> None:
    copy = make_raw(folder, SIZE, name="copy.img")
    for name, path in (("one", raw), ("two", copy)):
        client.execute("blockdev-add", driver="file", node_name=name, filename=str(path))
    client.execute("blockdev-add", driver="raw", node_name="disk", file="one")
    reopen(client, node("disk", "two"))
    assert image_of(daemon, "disk").pwrite(b"x", 0) == 1
    assert copy.read_bytes()[:1] == b"x"
    client.execute("blockdev-del", node_name="one")
    assert "in use" in client.refusal("blockdev-del", node_name="two").desc


def test_options_that_contradict_each_other_are_refused(client: Client, flat: FlatDisk) -> None:
    add_flat(client, flat)
    error = client.refusal(
        "blockdev-reopen",
        options=[
            node("vm", "vm-file", "vmdk", cache={"direct": True}),
            file_options(flat.path, **{"node-name": "vm-file"}),
        ],
    )
    assert "'vm' and 'vm-file' belong to one image" in error.desc
    assert client.nodes()["vm"]["cache"]["direct"] is False


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (lambda flat: node("none", "x"), "Failed to find node with node-name='none'"),
        (lambda flat: {"driver": "raw", "file": "x"}, "node-name not specified"),
        (lambda flat: node("vm", "vm-file"), "Cannot change the option 'driver'"),
        (
            lambda flat: file_options(flat.files[1], **{"node-name": "vm-file", "read-only": True}),
            "Read-only block node 'vm-file' cannot support read-write users",
        ),
        (lambda flat: node("vm", "none", "vmdk"), "Cannot find device='none'"),
    ],
)
def test_a_reopen_that_makes_no_sense_says_why(
    client: Client, flat: FlatDisk, options: Callable[[FlatDisk], Any], text: str
) -> None:
    add_flat(client, flat)
    assert text in client.refusal("blockdev-reopen", options=[options(flat)]).desc


def test_a_file_by_itself_is_reopened_too(client: Client, daemon: Daemon, raw: Path) -> None:
    client.execute("blockdev-add", driver="file", node_name="file", filename=str(raw))
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


def test_block_set_hostcache_flips_nothing_but_the_host_cache(
    client: Client, daemon: Daemon, flat: FlatDisk
) -> None:
    add_flat(client, flat)
    image = image_of(daemon, "vm")
    image.reopen(cache="writethrough")
    client.execute("block_set_hostcache", node_name="vm", hostcache=False)
    assert image.cache == "directsync"
    client.execute("block_set_hostcache", node_name="vm-file", hostcache=True)
    assert image.cache == "writethrough"
    image.reopen(cache="unsafe")
    error = client.refusal("block_set_hostcache", node_name="vm", hostcache=False)
    assert "no-flush" in error.desc
    error = client.refusal("block_set_hostcache", node_name="none", hostcache=False)
    assert (error.kind, error.desc) == ("DeviceNotFound", "Device 'none' not found")


# -- the rest


def test_a_disk_is_resized(client: Client, raw: Path) -> None:
    add_raw(client, raw)
    client.execute("block_resize", node_name="disk", size=2 * SIZE)
    assert raw.stat().st_size == 2 * SIZE
    client.execute("block_resize", device="disk", size=SIZE)
    assert client.nodes()["disk"]["image"]["virtual-size"] == SIZE
    for given in ({"node_name": "none"}, {}, {"node_name": "disk", "device": "disk"}):
        assert "Cannot find device=" in client.refusal("block_resize", size=1, **given).desc
    error = client.refusal("block_resize", node_name="disk", size=-1)
    assert error.desc == "Parameter 'size' expects a >0 size"


def test_deleting_a_node_flushes_and_closes_it(client: Client, daemon: Daemon, raw: Path) -> None:
    add_raw(client, raw)
    image = image_of(daemon, "disk")
    client.execute("blockdev-del", node_name="disk")
    assert image.closed
    assert client.nodes() == {}
    error = client.refusal("blockdev-del", node_name="disk")
    assert error.desc == "Failed to find node with node-name='disk'"


def test_a_part_of_an_image_ends_with_it(client: Client, flat: FlatDisk) -> None:
    add_flat(client, flat)
    error = client.refusal("blockdev-del", node_name="vm-file")
    assert error.desc == "Node 'vm-file' is a part of 'vm', and ends with it"


def test_what_flush_says_at_the_end_of_a_node_is_told(
    client: Client, daemon: Daemon, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_raw(client, raw)

    def failing(self: Image) -> None:
        close(self)
        raise ImageIOError(5, "Input/output error", str(raw))

    close = Image.close
    monkeypatch.setattr(Image, "close", failing)
    error = client.refusal("blockdev-del", node_name="disk")
    assert "deleted, but what was written to it may be lost" in error.desc
    assert client.nodes() == {}
