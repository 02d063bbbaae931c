"""A CP/M machine keeps its files on our image through the file object that emulators use."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fdstash
from fdstash.adapters.disk_file import DiskFile
from tests.support.disks import noise
from tests.support.need import need_package

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpm_drive.py"
CONTENT = noise(128 * 200, 6)


@pytest.fixture(scope="module")
def cpm80() -> Any:
    return need_package("cpm80", "cpm80")


@pytest.fixture(scope="module")
def example(cpm80: Any) -> ModuleType:
    spec = importlib.util.spec_from_file_location("cpm_drive", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["raw", "vmdk"])
def image(request: pytest.FixtureRequest, cpm80: Any, tmp_path: Path) -> Iterator[fdstash.Image]:
    size = -(-cpm80.DISK_FORMATS["default"].disk_size // 512) * 512
    path, options = tmp_path / "disk", {}
    if request.param == "vmdk":
        options = {"subformat": "twoGbMaxExtentFlat", "extent_size": 77 * 512}
    fdstash.create(path, request.param, size, **options)
    with fdstash.open(path, "r+", format=request.param) as opened:
        # What a formatted CP/M disk holds.
        for offset in range(0, size, 1 << 20):
            opened.pwrite(b"\xe5" * min(1 << 20, size - offset), offset)
        yield opened


def machine(cpm80: Any, example: ModuleType, image: fdstash.Image, *commands: str) -> Any:
    drive = example.FileDrive(DiskFile(image), cpm80.DISK_FORMATS["default"])
    return cpm80.I8080CPMMachine(
        drives=[drive],
        console_reader=cpm80.StringKeyboard(*commands),
        console_writer=cpm80.StringDisplay(),
    )


def write(cpm: Any, name: str, content: bytes) -> None:
    cpm.make_file(name)
    cpm.write_file(content)
    cpm.close_file()


def read(cpm: Any, name: str) -> bytes:
    cpm.open_file(name)
    data: bytes = cpm.read_file()
    return data


def test_cpm_files_live_through_reopens_under_the_machine(
    cpm80: Any, example: ModuleType, image: fdstash.Image
) -> None:
    cpm = machine(cpm80, example, image)
    write(cpm, "one.dat", CONTENT)
    image.reopen(cache="none")
    write(cpm, "two.dat", CONTENT[::-1])
    assert read(cpm, "one.dat") == CONTENT
    image.reopen(mode="r", cache="writeback")
    assert read(cpm, "two.dat") == CONTENT[::-1]
    image.reopen(mode="r+")
    write(cpm, "three.dat", b"3" * 128)

    again = machine(cpm80, example, image)
    assert read(again, "one.dat") == CONTENT
    assert read(again, "two.dat") == CONTENT[::-1]
    assert read(again, "three.dat") == b"3" * 128


def test_cpm_lists_and_erases_at_its_prompt(
    cpm80: Any, example: ModuleType, image: fdstash.Image
) -> None:
    cpm = machine(cpm80, example, image)
    write(cpm, "one.dat", CONTENT)
    write(cpm, "two.dat", CONTENT)
    display = cpm80.StringDisplay()
    drive = example.FileDrive(DiskFile(image), cpm80.DISK_FORMATS["default"])
    cpm80.I8080CPMMachine(
        drives=[drive],
        console_reader=cpm80.StringKeyboard("dir", "era one.dat", "dir"),
        console_writer=display,
    ).run()
    before, after = display.string.split("era one.dat")
    assert "ONE      DAT" in before
    assert "ONE      DAT" not in after
    assert "TWO      DAT" in after


def test_a_read_only_disk_is_a_bad_sector_to_cpm(
    cpm80: Any, example: ModuleType, image: fdstash.Image
) -> None:
    drive = example.FileDrive(DiskFile(image), cpm80.DISK_FORMATS["default"])
    image.reopen(mode="r")
    with pytest.raises(cpm80.Error, match="Bad file descriptor"):
        drive.write_sector(bytes(128))
    assert drive.read_sector() == b"\xe5" * 128
