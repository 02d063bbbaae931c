"""`fdstash check`: qemu-img's exit codes and words."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fdstash
from fdstash.cli.app import app

GRAIN = 65536


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, words)])


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 4 << 20, subformat="monolithicSparse")
    with fdstash.open(path, "r+") as image:
        image.pwrite(b"x" * GRAIN, 0)
    return path


def leak(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 2 * GRAIN)


def corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        directory = struct.unpack_from("<Q", file.read(512), 56)[0]
        file.seek(512 * directory)
        file.write(struct.pack("<I", 1 << 30))


def test_a_good_image(disk: Path) -> None:
    done = run(disk)
    assert done.exit_code == 0
    assert "No errors were found on the image." in done.output
    assert "1/64 = 1.56% allocated" in done.output


def test_leaks_and_their_repair(disk: Path) -> None:
    leak(disk)
    assert run(disk).exit_code == 3
    done = run("-r", "leaks", disk)
    assert done.exit_code == 0
    assert "2 leaked clusters were repaired." in done.output
    assert run("-q", disk).output == ""


def test_corruption(disk: Path) -> None:
    corrupt(disk)
    done = run("-r", "all", disk)
    assert done.exit_code == 2
    assert "CORRUPTION" in done.output


def test_json_has_the_keys_of_qemu_img(disk: Path) -> None:
    leak(disk)
    done = run("--output", "json", disk)
    found = json.loads(done.output)
    assert found["leaks"] == 2
    assert found["corruptions"] == found["check-errors"] == 0
    assert found["total-clusters"] == 64
    assert found["image-end-offset"] == disk.stat().st_size - 2 * GRAIN
    assert [each["severity"] for each in found["findings"]] == ["leak"]


def test_a_format_without_metadata(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    assert run("-f", "raw", path).exit_code == 63


def test_what_is_not_there(tmp_path: Path) -> None:
    assert run(tmp_path / "none.vmdk").exit_code == 1


def test_a_repair_that_is_no_such_thing(disk: Path) -> None:
    assert run("-r", "everything", disk).exit_code == 2
