"""What belongs to the `BlockDevice` protocol: without any one of these a class is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash.adapters import BlockDevice, ImageBlockDevice

MEMBERS = (
    "num_blocks",
    "block_bytes",
    "read_block",
    "write_block",
    "read_blocks_into",
    "flush",
    "read_chs",
    "write_chs",
)


def having(names: tuple[str, ...]) -> Any:
    return type("Disk", (), dict.fromkeys(names, lambda *_: None))()


def test_a_class_with_all_members_is_a_block_device() -> None:
    assert isinstance(having(MEMBERS), BlockDevice)


@pytest.mark.parametrize("absent", MEMBERS)
def test_a_class_without_one_of_them_is_none(absent: str) -> None:
    assert not isinstance(having(tuple(n for n in MEMBERS if n != absent)), BlockDevice)


def test_what_flush_made_durable_is_seen_by_who_looks_at_the_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(63 * 16 * 512))
    with fdstash.open(path, "r+", format="raw") as image:
        disk = ImageBlockDevice(image)
        disk.write_chs(0, 1, 1, b"C" * 512)
        disk.write_block(1, b"B" * 512)
        disk.flush()
        assert path.read_bytes()[63 * 512 : 64 * 512] == b"C" * 512
        assert path.read_bytes()[512:1024] == b"B" * 512
