"""`fdstash create`, and how sizes and options are read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import fdstash
from fdstash.cli.options import split_options
from fdstash.cli.sizes import format_size, parse_size
from tests.support.command import command
from tests.support.need import need_program


def test_raw_is_what_is_made_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    result = command("create", path, "1.5M")
    assert result.exit_code == 0
    assert result.stdout == f"Formatting '{path}': format raw, 1.5 MiB (1572864 bytes)\n"
    assert path.read_bytes() == bytes(1572864)


def test_a_vmdk_takes_its_options_and_whole_sectors(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    options = "subformat=twoGbMaxExtentFlat,extent_size=1M"
    result = command("create", "-f", "vmdk", "-o", options, "-o", "hwversion=10", path, "2049k")
    assert result.exit_code == 0
    assert "(2098176 bytes), subformat twoGbMaxExtentFlat" in result.stdout
    with fdstash.open(path) as image:
        assert (image.format, image.size, len(image.files)) == ("vmdk", 2049 << 10, 4)
    qemu_img = need_program("qemu-img", "qemu-utils")
    assert b"twoGbMaxExtentFlat" in subprocess.check_output([qemu_img, "info", path])
    assert 'virtualHWVersion = "10"' in path.read_text()


def test_a_size_is_rounded_up_to_sectors_by_vmdk(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    assert "(1024 bytes)" in command("create", "-f", "vmdk", path, "513").stdout


def test_the_size_may_be_an_option(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    assert command("create", "-q", "-o", "size=64k", path).output == ""
    assert path.stat().st_size == 65536


def test_options_are_listed_on_request() -> None:
    result = command("create", "-f", "vmdk", "-o", "help")
    assert result.exit_code == 0
    for word in ("subformat=<choice>", "twoGbMaxExtentFlat", "extent_size=<size>", "size=<size>"):
        assert word in result.stdout
    assert "preallocation" in command("create", "-o", "help").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "name"),
        (("IMAGE",), 2, "size"),
        (("IMAGE", "10x"), 2, "10x"),
        (("IMAGE", "--", "-1"), 2, "-1"),
        (("-o", "preallocation", "IMAGE", "1k"), 2, "preallocation"),
        (("-o", "size=lots", "IMAGE"), 2, "lots"),
        (("-o", "colour=red", "IMAGE", "1k"), 1, "colour"),
        (("-f", "nothing", "IMAGE", "1k"), 1, "nothing"),
        (("-f", "qcow2", "IMAGE", "1k"), 1, "qcow2"),
        (("-f", "vmdk", "-o", "subformat=what", "IMAGE", "1k"), 1, "subformat"),
        (("missing/IMAGE", "1k"), 1, "No such file"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_made(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    given = [str(tmp_path / each) if "IMAGE" in each else each for each in arguments]
    result = command("create", *given)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("fdstash: ")
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_image_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious")
    with fdstash.open(path, "r+", format="raw"):
        result = command("create", path, "1k")
    assert result.exit_code == 1
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("1k", 1024),
        ("1K", 1024),
        ("1.5G", 3 << 29),
        (".5k", 512),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("7E", 7 << 60),
        ("0.0001k", 0),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "1kk", "1 k", "0x10", "-1", "1e3", "8E", "9" * 30, "."])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|is more than"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1 << 20, "1 MiB"),
        ((1 << 30) - 1, "1 GiB"),
        (68 << 10, "68 KiB"),
    ],
)
def test_sizes_are_written_as_qemu_does(size: int, text: str) -> None:
    assert format_size(size) == text


def test_options_are_split_at_single_commas() -> None:
    assert split_options("a=1,b=x=y,help") == [("a", "1"), ("b", "x=y"), ("help", None)]
    assert split_options("name=a,,b,c=2") == [("name", "a,b"), ("c", "2")]
