"""amitools' file systems and its xdftool work on our image."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from tests.support.disks import noise
from tests.support.need import need_package

FLOPPY = 80 * 2 * 11 * 512
HARD_DISK = 4 << 20
CONTENT = noise(200_000, 5)


@pytest.fixture(autouse=True)
def _installed() -> None:
    need_package("amitools", "amitools")


@pytest.fixture(
    params=[("raw", FLOPPY), ("vmdk", FLOPPY), ("raw", HARD_DISK), ("vmdk", HARD_DISK)],
    ids=["raw floppy", "vmdk floppy", "raw hard disk", "vmdk hard disk"],
)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[fdstash.Image]:
    kind, size = request.param
    options: dict[str, Any] = {}
    if kind == "vmdk":
        options = {"subformat": "twoGbMaxExtentFlat", "extent_size": 150 * 512}
    path = tmp_path / f"disk.{kind}"
    fdstash.create(path, kind, size, **options)
    with fdstash.open(path, "r+", format=kind) as opened:
        yield opened


def name(text: str) -> Any:
    from amitools.fs.FSString import FSString

    return FSString(text)


def new_volume(disk: Any) -> Any:
    from amitools.fs.ADFSVolume import ADFSVolume

    volume = ADFSVolume(disk)
    volume.create(name("Work"), is_ffs=True)
    return volume


def old_volume(disk: Any) -> Any:
    from amitools.fs.ADFSVolume import ADFSVolume

    volume = ADFSVolume(disk)
    volume.open()
    return volume


def errors_and_warnings(disk: Any) -> tuple[int, int]:
    """What amitools' own check of the file system finds."""
    from amitools.fs.validate.Log import Log
    from amitools.fs.validate.Validator import (
        Validator,
    )

    check = Validator(disk, Log.WARN)
    assert check.scan_boot()[0]
    assert check.scan_root()
    check.scan_dir_tree()
    check.scan_files()
    check.scan_bitmap()
    found: tuple[int, int] = check.get_summary()
    return found


def test_a_volume_lives_through_reopens_on_our_image(image: fdstash.Image) -> None:
    from fdstash.adapters.amitools import AmigaDisk

    disk = AmigaDisk(image)
    volume = new_volume(disk)
    volume.create_dir(name("docs"))
    volume.write_file(CONTENT, name("docs/one"))
    image.reopen(cache="none")
    volume.write_file(CONTENT[::-1], name("docs/two"))
    volume.close()
    disk.flush()

    image.reopen(mode="r")
    volume = old_volume(disk)
    assert volume.read_file(name("docs/one")) == CONTENT
    with pytest.raises(fdstash.ImageIOError) as caught:
        volume.write_file(b"no", name("docs/three"))
    assert caught.value.errno == errno.EBADF
    disk.flush()

    image.reopen(mode="r+", cache="writeback")
    volume = old_volume(disk)
    assert volume.read_file(name("docs/two")) == CONTENT[::-1]
    volume.delete(name("docs/one"))
    volume.write_file(b"three", name("docs/three"))
    volume.close()
    disk.close()

    again = AmigaDisk(image)
    assert old_volume(again).read_file(name("docs/three")) == b"three"
    assert errors_and_warnings(again) == (0, 0)


def test_flush_and_close_reach_the_image(
    image: fdstash.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fdstash.adapters.amitools import AmigaDisk

    flushes = []
    real = fdstash.Image.flush
    monkeypatch.setattr(fdstash.Image, "flush", lambda self: (flushes.append(self), real(self)))
    disk = AmigaDisk(image)
    disk.flush()
    assert flushes == [image]
    disk.close()
    disk.close()
    assert flushes == [image, image]
    with pytest.raises(fdstash.ClosedError):
        disk.read_block(0)
    assert image.pread(4, 0) == bytes(4)
    disk.open()
    assert disk.read_block(0) == bytes(512)
    image.reopen(mode="r")
    disk.close()
    assert flushes == [image, image]


def test_blocks_are_checked(image: fdstash.Image) -> None:
    from fdstash.adapters.amitools import AmigaDisk

    disk = AmigaDisk(image)
    assert disk.num_blocks == image.size // 512
    with pytest.raises(fdstash.ImageIOError) as caught:
        disk.read_block(disk.num_blocks)
    assert caught.value.errno == errno.ENXIO
    with pytest.raises(fdstash.OptionError, match="511 bytes"):
        disk.write_block(0, bytes(511))
    disk.write_block(2, bytearray(b"\x5a" * 1024), num_blks=2)
    assert disk.read_block(1, num_blks=3) == bytes(512) + b"\x5a" * 1024


def test_block_sizes_and_geometries_that_do_not_fit_are_refused(image: fdstash.Image) -> None:
    from amitools.fs.blkdev.DiskGeometry import (
        DiskGeometry,
    )

    from fdstash.adapters.amitools import AmigaDisk

    for size in (0, -512, 100, 513):
        with pytest.raises(fdstash.OptionError, match="512"):
            AmigaDisk(image, block_bytes=size)
    with pytest.raises(fdstash.OptionError, match="a geometry of 102400 blocks"):
        AmigaDisk(image, geometry=DiskGeometry(100, 16, 64))
    small = AmigaDisk(image, geometry=DiskGeometry(10, 4, 8))
    assert (small.num_blocks, small.get_chs_str()) == (320, "chs=10,4,8")
    large = AmigaDisk(image, block_bytes=1024)
    assert (large.block_longs, large.num_blocks * 1024 <= image.size) == (256, True)


def test_xdftool_runs_on_our_image(
    image: fdstash.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from amitools.fs.blkdev.BlkDevFactory import (
        BlkDevFactory,
    )
    from amitools.tools import xdftool

    from fdstash.adapters.amitools import AmigaDisk

    (tmp_path / "in").write_bytes(CONTENT)
    monkeypatch.setattr(BlkDevFactory, "open", lambda *_, **__: AmigaDisk(image))
    wrote = [str(tmp_path / "in"), "Tools/out"]
    assert xdftool.main(["ours.hdf", "format", "Work", "+", "makedir", "Tools"]) == 0
    assert xdftool.main(["ours.hdf", "write", *wrote]) == 0
    image.reopen(mode="r")
    assert xdftool.main(["ours.hdf", "list", "+", "read", "Tools/out", str(tmp_path / "out")]) == 0
    assert "Tools" in capsys.readouterr().out
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_what_we_wrote_xdftool_reads_by_itself(
    image: fdstash.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from amitools.tools import xdftool

    from fdstash.adapters.amitools import AmigaDisk

    disk = AmigaDisk(image)
    volume = new_volume(disk)
    volume.write_file(CONTENT, name("one"))
    volume.close()
    disk.close()
    copy = tmp_path / ("copy.adf" if image.size == FLOPPY else "copy.hdf")
    copy.write_bytes(image.pread(image.size, 0))
    image.close()
    assert xdftool.main([str(copy), "list", "+", "read", "one", str(tmp_path / "out")]) == 0
    assert "Work" in capsys.readouterr().out
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_a_partitioned_disk_has_volumes_in_its_partitions(tmp_path: Path) -> None:
    from amitools.fs.blkdev.DiskGeometry import DiskGeometry
    from amitools.fs.rdb.RDisk import RDisk

    from fdstash.adapters.amitools import AmigaDisk

    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 8 << 20, subformat="monolithicFlat")
    with fdstash.open(path, "r+") as image:
        disk = AmigaDisk(image, geometry=DiskGeometry(64, 8, 32))
        table = RDisk(disk)
        table.create(DiskGeometry(64, 8, 32))
        table.add_partition(name("DH0"), (1, 40))
        part = table.get_partition(0).create_blkdev()
        part.open()
        volume = new_volume(part)
        volume.write_file(CONTENT, name("one"))
        volume.close()
        part.flush()
        table.close()

        image.reopen(mode="r", cache="none")
        table = RDisk(AmigaDisk(image))
        assert table.open()
        part = table.find_partition_by_string("DH0").create_blkdev()
        part.open()
        assert old_volume(part).read_file(name("one")) == CONTENT
        assert errors_and_warnings(part) == (0, 0)
