"""Nodes as `query-named-block-nodes` and `query-block` tell them. Waits for no reopen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import fdstash
from fdstash.cache import cache_mode
from fdstash.hostfile import FileInfo
from fdstash.monitor.descriptors import close_all
from fdstash.monitor.nodes import BackingNode, ChildNode, FileNode, ImageNode, Node, NodeTable
from fdstash.monitor.opener import own_files

__all__ = ["describe", "describe_all", "query_block"]

_UNTHROTTLED = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr", "write_threshold")


def describe_all(table: NodeTable, *, flat: bool = False) -> list[dict[str, Any]]:
    """Every node that is still there when it is looked at."""
    found = (describe(node) for node in table if not (flat and isinstance(node, BackingNode)))
    return [each for each in found if each is not None]


def query_block(table: NodeTable) -> list[dict[str, Any]]:
    """The images that nothing is based on."""
    roots = (n for n in table if isinstance(n, ImageNode) and not n.parents)
    return [
        {"device": "", "type": "unknown", "removable": False, "locked": False, "inserted": told}
        for told in map(describe, roots)
        if told is not None
    ]


def describe(node: Node) -> dict[str, Any] | None:
    """BlockDeviceInfo; None for a node that ends meanwhile."""
    try:
        match node:
            case ImageNode():
                return _image(node)
            case ChildNode():
                file = node.image.image.files[node.index]
                return _file(node, file, node.image.image.cache)
            case BackingNode():
                return _backing(node)
            case FileNode():
                return _file_node(node)
    except (fdstash.ClosedError, IndexError):
        pass
    return None


def _info(
    node: Node, filename: str, image: dict[str, Any], *, read_only: bool, cache: str
) -> dict[str, Any]:
    mode = cache_mode(cache)
    return {
        "node-name": node.name,
        "drv": node.driver,
        "file": filename,
        "ro": read_only,
        "encrypted": False,
        "detect_zeroes": "off",
        "backing_file_depth": 0,
        **dict.fromkeys(_UNTHROTTLED, 0),
        "cache": {
            "writeback": not mode.durable,
            "direct": mode.direct,
            "no-flush": mode.ignores_flush,
        },
        "image": {"filename": filename, "dirty-flag": False, **image},
        "children": [],
    }


def _image(node: ImageNode) -> dict[str, Any]:
    image = node.image
    files = image.files[: own_files(image)]
    shown: dict[str, Any] = {
        "format": image.format,
        "virtual-size": image.size,
        "actual-size": sum(file.allocated for file in files),
    }
    special = image.format_info
    if special:
        shown["format-specific"] = {"type": image.format, "data": dict(special)}
    info = _info(node, node.filename, shown, read_only=image.mode == "r", cache=image.cache)
    info["children"] = [{"child": each.role, "node-name": each.name} for each in node.children]
    chain = list(_chain(image))
    if chain:
        info["backing_file"] = shown["backing-filename"] = chain[0].name
        info["backing_file_depth"] = len(chain)
    return info


def _chain(image: fdstash.Image) -> Iterator[fdstash.Backing]:
    below = image.backing
    while below is not None:
        yield below
        below = below.backing


def _file(node: Node, file: FileInfo, cache: str) -> dict[str, Any]:
    shown = {"format": "file", "virtual-size": file.size, "actual-size": file.allocated}
    info = _info(node, file.name, shown, read_only=file.mode == "r", cache=cache)
    info["cache"]["direct"] = file.direct
    return info


def _backing(node: BackingNode) -> dict[str, Any]:
    image = node.image.image
    below = list(_chain(image))[node.depth - 1]
    shown = {
        "format": below.format,
        "virtual-size": below.size,
        "actual-size": sum(file.allocated for file in below.files),
    }
    return _info(node, below.name, shown, read_only=True, cache=image.cache)


def _file_node(node: FileNode) -> dict[str, Any]:
    owner = node.user
    names = [] if owner is None else [each.name for each in owner.children]
    if owner is not None and node.name in names:
        index = names.index(node.name)
        return _file(node, owner.image.files[index], owner.image.cache)
    if node.direct_image is not None:
        return _file(node, node.direct_image.files[0], node.direct_image.cache)
    fds = node.held.dup_all(node.filename)
    try:
        size = os.lseek(fds[-1], 0, os.SEEK_END)
        allocated = os.fstat(fds[-1]).st_blocks * 512
    finally:
        close_all(fds)
    shown = {"format": "file", "virtual-size": size, "actual-size": allocated}
    caching = node.options.cache
    cache = caching.mode() if caching is not None else "writeback"
    return _info(node, node.filename, shown, read_only=node.mode == "r", cache=cache)
