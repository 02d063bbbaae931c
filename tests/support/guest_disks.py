"""Disks with a file system that a peer made, imported into images of ours."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import fdstash
from tests.support.need import need_program, plain_environment

__all__ = ["import_flat", "make_ext4", "partitioned"]

_MIB = 1 << 20


def make_ext4(folder: Path, files: Mapping[str, bytes], size: int = 8 * _MIB) -> bytes:
    """A new ext4 file system with these files in its root."""
    tree, path = folder / "ext4-tree", folder / "ext4.raw"
    tree.mkdir()
    for name, content in files.items():
        (tree / name).write_bytes(content)
    with path.open("wb") as file:
        file.truncate(size)
    mkfs = need_program("mkfs.ext4", "e2fsprogs")
    subprocess.run(
        [mkfs, "-q", "-F", "-d", tree, path], check=True, timeout=60, env=plain_environment()
    )
    return path.read_bytes()


def partitioned(content: bytes, kind: int = 0x83, start: int = _MIB) -> bytes:
    """A disk with an MBR and one partition that holds `content`, whole sectors of 512 bytes."""
    entry = (
        bytes([0, 0xFE, 0xFF, 0xFF, kind, 0xFE, 0xFF, 0xFF])
        + (start // 512).to_bytes(4, "little")
        + (len(content) // 512).to_bytes(4, "little")
    )
    mbr = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    return mbr.ljust(start, b"\0") + content


def import_flat(path: Path, content: bytes, extent_size: int = _MIB) -> Path:
    """Make a flat VMDK of many extents that reads as `content`."""
    fdstash.create(
        path, "vmdk", len(content), subformat="twoGbMaxExtentFlat", extent_size=extent_size
    )
    with fdstash.open(path, "r+") as image:
        image.pwrite(content, 0)
    return path
