"""`fdstash map`, beside `qemu-img map`."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

import fdstash
from tests.support.command import command, fdstash_json
from tests.support.need import need_program


def qemu_map(path: Path, image_format: str) -> list[dict[str, Any]]:
    qemu_img = need_program("qemu-img", "qemu-utils")
    arguments = [qemu_img, "map", "--output", "json", "-f", image_format, path]
    found: list[dict[str, Any]] = json.loads(subprocess.check_output(arguments, text=True))
    return found


def without_names(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: entry[key] for key in entry if key != "filename"} for entry in entries]


def scatter(path: Path, image_format: str, seed: int) -> None:
    rng = random.Random(seed)
    with fdstash.open(path, "r+", format=image_format) as image:
        for _ in range(12):
            offset = rng.randrange(image.size // 4096) * 4096
            image.pwrite(b"\1" * min(rng.randrange(1, 100_000), image.size - offset), offset)


@pytest.mark.parametrize("seed", range(3))
def test_a_raw_image_is_mapped_as_qemu_does(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "disk.raw"
    fdstash.create(path, "raw", 8 << 20)
    scatter(path, "raw", seed)
    found = fdstash_json("map", "-f", "raw", path)
    assert without_names(found) == qemu_map(path, "raw")
    assert {entry["filename"] for entry in found} == {str(path)}


@pytest.mark.parametrize("seed", range(3))
def test_a_vmdk_is_mapped_as_qemu_does(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 8 << 20, subformat="twoGbMaxExtentFlat", extent_size=1 << 20)
    scatter(path, "vmdk", seed)
    found = fdstash_json("map", path)
    assert without_names(found) == qemu_map(path, "vmdk")
    names = [str(tmp_path / f"disk-f{number:03}.vmdk") for number in range(1, 9)]
    assert list(dict.fromkeys(entry["filename"] for entry in found)) == names


def test_every_byte_is_mapped_once(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 5 << 20, subformat="twoGbMaxExtentFlat", extent_size=1 << 20)
    scatter(path, "vmdk", 9)
    end = 0
    for entry in fdstash_json("map", path):
        assert entry["start"] == end
        end += entry["length"]
    assert end == 5 << 20


def test_zero_and_forbidden_extents_have_no_file(tmp_path: Path) -> None:
    path = tmp_path / "odd.vmdk"
    (tmp_path / "data").write_bytes(b"\1" * 4096)
    path.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\n'
        'RW 8 FLAT "data" 0\nRW 8 ZERO\nNOACCESS 8 FLAT "data" 0\n'
    )
    with fdstash.open(path) as image:
        kinds = [extent.kind for extent in image.extents()]
    assert kinds == ["data", "zero", "denied"]
    data, zero, denied = fdstash_json("map", path)
    assert (data["data"], data["zero"], data["offset"]) == (True, False, 0)
    assert (zero["data"], zero["zero"], "offset" in zero) == (False, True, False)
    assert (denied["data"], denied["zero"], "filename" in denied) == (False, False, False)


def test_a_part_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"\1" * 8192)
    part = fdstash_json("map", "-s", "1k", "-l", "4k", path)
    assert [(entry["start"], entry["length"]) for entry in part] == [(1024, 4096)]


def test_an_empty_image_is_an_empty_list(tmp_path: Path) -> None:
    path = tmp_path / "empty.raw"
    path.touch()
    assert fdstash_json("map", path) == []


def test_people_get_the_data_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    fdstash.create(path, "raw", 1 << 20)
    with fdstash.open(path, "r+", format="raw") as image:
        image.pwrite(b"\1" * 4096, 65536)
    lines = command("map", path).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["Offset", "Length", "Mapped", "to", "File"],
        ["0x10000", "0x1000", "0x10000", str(path)],
    ]
