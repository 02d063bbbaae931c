"""Copies of images, judged by qemu-img."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import fdstash
from tests.support.qemu_tools import qemu_img

SIZE = (5 << 20) + 3 * 512
SUBFORMATS = (
    "monolithicSparse",
    "twoGbMaxExtentSparse",
    "streamOptimized",
    "monolithicFlat",
    "twoGbMaxExtentFlat",
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Runs of data and of zeros, on and off the borders of grains, and a last part of a grain."""
    pick = random.Random(7)
    data = bytearray(SIZE)
    for offset, n in ((0, 512), (65536 * 3 - 100, 200), (1 << 20, 300000), (SIZE - 700, 700)):
        data[offset : offset + n] = pick.randbytes(n)
    path = tmp_path / "disk.raw"
    path.write_bytes(data)
    return path


def same(one: Path, one_format: str, other: Path, other_format: str) -> None:
    qemu_img("compare", "-f", one_format, "-F", other_format, str(one), str(other))


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_a_raw_image_becomes_every_kind_of_vmdk_and_raw_again(
    raw: Path, tmp_path: Path, subformat: str
) -> None:
    made = tmp_path / "made.vmdk"
    with fdstash.open(raw, format="raw") as source:
        fdstash.convert(source, made, "vmdk", subformat=subformat)
    same(made, "vmdk", raw, "raw")
    qemu_img("check", "-f", "vmdk", str(made))
    with fdstash.open(made) as copy:
        assert copy.format_info["create-type"] == subformat
        assert copy.pread(SIZE, 0) == raw.read_bytes()
    fdstash.convert(made, tmp_path / "again.raw", "raw")
    assert (tmp_path / "again.raw").read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_image_of_qemus_becomes_a_stream(raw: Path, tmp_path: Path, subformat: str) -> None:
    theirs, ours = tmp_path / "theirs.vmdk", tmp_path / "ours.vmdk"
    options = f"subformat={subformat}"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", options, str(raw), str(theirs))
    fdstash.convert(theirs, ours, "vmdk", subformat="streamOptimized")
    same(ours, "vmdk", raw, "raw")
    assert ours.stat().st_size < SIZE // 2


def test_a_chain_becomes_one_image(raw: Path, tmp_path: Path) -> None:
    base, delta = tmp_path / "base.vmdk", tmp_path / "delta.vmdk"
    with fdstash.open(raw, format="raw") as source:
        fdstash.convert(source, base, "vmdk", subformat="monolithicSparse")
    fdstash.create(delta, "vmdk", SIZE, subformat="monolithicSparse", backing_file="base.vmdk")
    with fdstash.open(delta, "r+") as image:
        image.pwrite(b"above", 70000)
        whole = image.pread(SIZE, 0)
        fdstash.convert(image, tmp_path / "top.raw", "raw")
        below = image.backing
        assert below is not None
        fdstash.convert(below, tmp_path / "below.raw", "raw")
    assert (tmp_path / "top.raw").read_bytes() == whole
    assert (tmp_path / "below.raw").read_bytes() == raw.read_bytes()


def test_zeros_take_no_space_in_the_copy(raw: Path, tmp_path: Path) -> None:
    with fdstash.open(raw, format="raw") as source:
        fdstash.convert(source, tmp_path / "made.vmdk", "vmdk", subformat="monolithicSparse")
    with fdstash.open(tmp_path / "made.vmdk") as copy:
        held = sum(extent.length for extent in copy.extents() if extent.kind != "hole")
    assert held < SIZE // 4


def test_progress_is_told_up_to_the_end(raw: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with fdstash.open(raw, format="raw") as source:
        fdstash.convert(
            source, tmp_path / "copy.raw", "raw", progress=lambda *each: told.append(each)
        )
    assert told == sorted(told)
    assert told[-1] == (SIZE, SIZE)


def test_an_image_is_not_copied_over_one_of_its_own_files(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 4 << 20, subformat="twoGbMaxExtentSparse", extent_size=2 << 20)
    for own in (path, tmp_path / "disk-s002.vmdk"):
        before = own.read_bytes()
        with pytest.raises(fdstash.ImageIOError, match="own files"):
            fdstash.convert(path, own, "raw")
        assert own.read_bytes() == before


def test_a_copy_that_fails_half_way_leaves_no_image(raw: Path, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with fdstash.open(raw, format="raw") as source:
        for subformat in SUBFORMATS:
            with pytest.raises(KeyboardInterrupt):
                fdstash.convert(
                    source, tmp_path / "half.vmdk", "vmdk", progress=fail, subformat=subformat
                )
            assert not (tmp_path / "half.vmdk").exists()
