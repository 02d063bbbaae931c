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
from tests.support.disks import FlatDisk, make_raw, noise
from tests.support.kernel import access_mode
from tests.support.monitor import (
    Client,
    add_flat,
    add_raw,
    file_options,
    image_of,
    node,
    reopen,
)
from tests.support.seen import READER_BYTES, WRITER_BYTES, image_descriptors, locked_bytes

SIZE = 1 << 16


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
