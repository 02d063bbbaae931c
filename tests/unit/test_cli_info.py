"""`fdstash info`, beside `qemu-img info`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import fdstash
from tests.support.command import command, fdstash_json, program
from tests.support.need import need_program


def qemu_info(path: Path) -> Any:
    qemu_img = need_program("qemu-img", "qemu-utils")
    text = subprocess.check_output([qemu_img, "info", "--output", "json", path], text=True)
    return json.loads(text)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    fdstash.create(path, "raw", 3 << 20)
    with fdstash.open(path, "r+", format="raw") as image:
        image.pwrite(b"\1" * 65536, 1 << 20)
    return path


@pytest.fixture
def vmdk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 3 << 20, subformat="twoGbMaxExtentFlat", extent_size=1 << 20)
    with fdstash.open(path, "r+") as image:
        image.pwrite(b"\1" * 65536, (1 << 20) - 4096)
    return path


def test_a_raw_image_is_described_as_qemu_does(raw: Path) -> None:
    ours, theirs = fdstash_json("info", "-f", "raw", raw), qemu_info(raw)
    assert {key: ours[key] for key in theirs} == theirs


def test_a_vmdk_is_described_as_qemu_does(vmdk: Path) -> None:
    ours, theirs = fdstash_json("info", vmdk), qemu_info(vmdk)
    extents = ours["format-specific"]["data"].pop("extents")
    their_extents = theirs["format-specific"]["data"].pop("extents")
    assert {key: ours[key] for key in theirs} == theirs
    assert [
        {key: mine[key] for key in its} for mine, its in zip(extents, their_extents, strict=True)
    ] == (their_extents)


def test_every_file_is_listed_with_what_it_takes(vmdk: Path) -> None:
    found = fdstash_json("info", vmdk)
    files = found["files"]
    names = ["disk.vmdk", "disk-f001.vmdk", "disk-f002.vmdk", "disk-f003.vmdk"]
    assert [file["filename"] for file in files] == [str(vmdk.with_name(name)) for name in names]
    for file in files:
        status = Path(file["filename"]).stat()
        assert file["size"] == status.st_size
        assert file["actual-size"] == status.st_blocks * 512
    assert found["actual-size"] == sum(file["actual-size"] for file in files)


def test_a_chain_is_a_list_of_images(raw: Path) -> None:
    chain = fdstash_json("info", "--backing-chain", raw)
    assert chain == [fdstash_json("info", raw)]


def test_people_get_lines(vmdk: Path) -> None:
    result = command("info", vmdk)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:3] == [
        f"image: {vmdk}",
        "file format: vmdk",
        "virtual size: 3 MiB (3145728 bytes)",
    ]
    assert "    create type: twoGbMaxExtentFlat" in lines
    assert f"            filename: {vmdk.with_name('disk-f002.vmdk')}" in lines


def test_a_locked_image_is_shown_only_by_force(raw: Path) -> None:
    with fdstash.open(raw, "r+", format="raw"):
        refused = command("info", raw)
        assert refused.exit_code == 1
        assert refused.stdout == ""
        assert refused.stderr.startswith(f"fdstash: {raw}: ")
        assert "--force-share" in refused.stderr
        assert fdstash_json("info", "-U", raw)["virtual-size"] == 3 << 20


def test_an_image_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "none"
    result = program("info", path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"fdstash: {path}: open: No such file or directory\n"


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(504))
    result = command("info", path)
    assert result.exit_code == 1
    assert "qcow2" in result.stderr
