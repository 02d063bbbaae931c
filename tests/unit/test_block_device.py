"""The block device adapter: numbered blocks and CHS on any image."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash.adapters import BlockDevice, ImageBlockDevice

BLOCKS = 2 * 4 * 9  # cylinders, heads, sectors


@pytest.fixture
def image(tmp_path: Path) -> Iterator[fdstash.Image]:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"".join(n.to_bytes(2, "big") * 256 for n in range(BLOCKS)))
    with fdstash.open(path, "r+", format="raw") as opened:
        yield opened


@pytest.fixture
def disk(image: fdstash.Image) -> ImageBlockDevice:
    return ImageBlockDevice(image, heads=4, sectors_per_track=9)


def block(n: int) -> bytes:
    return n.to_bytes(2, "big") * 256


def test_it_is_a_block_device_by_type_and_at_run_time(disk: ImageBlockDevice) -> None:
    device: BlockDevice = disk
    assert isinstance(device, BlockDevice)
    assert not isinstance(disk.image, BlockDevice)


def test_blocks_are_read_by_number(disk: ImageBlockDevice) -> None:
    assert (disk.num_blocks, disk.block_bytes) == (BLOCKS, 512)
    assert disk.read_block(0) == block(0)
    assert disk.read_block(BLOCKS - 1) == block(BLOCKS - 1)
    assert disk.read_blocks(3, 2) == block(3) + block(4)
    assert disk.read_blocks(BLOCKS, 0) == b""


def test_blocks_are_written_by_number_from_any_buffer(disk: ImageBlockDevice) -> None:
    disk.write_block(5, bytearray(block(500)))
    disk.write_blocks(6, memoryview(block(600) + block(700)))
    disk.flush()
    found = [disk.read_block(n) for n in range(4, 9)]
    assert found == [block(4), block(500), block(600), block(700), block(8)]


def test_runs_of_blocks_are_read_into_a_buffer(disk: ImageBlockDevice) -> None:
    buffer = bytearray(3 * 512)
    assert disk.read_blocks_into(7, buffer) == 3
    assert buffer == block(7) + block(8) + block(9)


def test_a_run_is_short_only_where_the_disk_ends(disk: ImageBlockDevice) -> None:
    buffer = bytearray(b"\xff" * (3 * 512))
    assert disk.read_blocks_into(BLOCKS - 2, buffer) == 2
    assert buffer == block(BLOCKS - 2) + block(BLOCKS - 1) + b"\xff" * 512
    assert disk.read_blocks_into(BLOCKS, bytearray()) == 0


@pytest.mark.parametrize(
    ("chs", "lba"), [((0, 0, 1), 0), ((0, 0, 9), 8), ((0, 1, 1), 9), ((1, 3, 9), BLOCKS - 1)]
)
def test_chs_addresses_are_those_of_the_geometry(
    disk: ImageBlockDevice, chs: tuple[int, int, int], lba: int
) -> None:
    assert disk.lba(*chs) == lba
    assert disk.read_chs(*chs) == block(lba)
    disk.write_chs(*chs, block(0x7777))
    assert disk.read_block(lba) == block(0x7777)


def test_chs_runs_go_on_across_tracks(disk: ImageBlockDevice) -> None:
    assert disk.cylinders == 2
    assert disk.read_chs(0, 0, 9, 3) == block(8) + block(9) + block(10)
    disk.write_chs(0, 0, 9, block(1) + block(2))
    assert disk.read_blocks(8, 2) == block(1) + block(2)


@pytest.mark.parametrize("n", [-1, BLOCKS, 1 << 70])
def test_a_block_that_is_not_there_is_enxio(disk: ImageBlockDevice, n: int) -> None:
    for call in (
        lambda: disk.read_block(n),
        lambda: disk.write_block(n, block(0)),
        lambda: disk.read_blocks_into(n, bytearray(512)),
    ):
        with pytest.raises(fdstash.ImageIOError) as caught:
            call()
        assert caught.value.errno == errno.ENXIO
        assert f"{BLOCKS} blocks" in str(caught.value)


@pytest.mark.parametrize(
    "chs", [(0, 0, 0), (0, 0, 10), (0, 4, 1), (0, -1, 1), (-1, 0, 1), (2, 0, 1)]
)
def test_an_address_outside_the_geometry_is_enxio(
    disk: ImageBlockDevice, chs: tuple[int, int, int]
) -> None:
    with pytest.raises(fdstash.ImageIOError) as caught:
        disk.read_chs(*chs)
    assert caught.value.errno == errno.ENXIO


def test_a_run_that_leaves_the_disk_writes_nothing(disk: ImageBlockDevice) -> None:
    with pytest.raises(fdstash.ImageIOError):
        disk.write_blocks(BLOCKS - 1, block(1) + block(2))
    assert disk.read_block(BLOCKS - 1) == block(BLOCKS - 1)


@pytest.mark.parametrize("size", [0, 1, 511, 513, 1024])
def test_a_partial_block_is_a_value_error(disk: ImageBlockDevice, size: int) -> None:
    with pytest.raises(ValueError, match="512 bytes"):
        disk.write_block(0, bytes(size))
    if size % 512:
        with pytest.raises(ValueError, match="512 bytes"):
            disk.read_blocks_into(0, bytearray(size))
        with pytest.raises(ValueError, match="512 bytes"):
            disk.write_blocks(0, bytes(size))
    assert disk.read_block(0) == block(0)


def test_bytes_behind_the_last_whole_block_belong_to_none(image: fdstash.Image) -> None:
    disk = ImageBlockDevice(image, block_bytes=4096)
    assert disk.num_blocks == BLOCKS * 512 // 4096
    image.resize(image.size + 100)
    assert disk.num_blocks == BLOCKS * 512 // 4096
    with pytest.raises(fdstash.ImageIOError, match="100 bytes that are no whole block"):
        disk.read_block(disk.num_blocks)


@pytest.mark.parametrize("name", ["block_bytes", "heads", "sectors_per_track"])
def test_a_geometry_of_nothing_is_refused(image: fdstash.Image, name: str) -> None:
    with pytest.raises(fdstash.OptionError) as caught:
        ImageBlockDevice(image, **{name: 0})
    assert caught.value.option == name


def test_a_read_only_image_reads_and_refuses_writes(disk: ImageBlockDevice) -> None:
    disk.image.reopen(mode="r")
    assert disk.read_block(1) == block(1)
    with pytest.raises(fdstash.ImageIOError) as caught:
        disk.write_block(1, block(0))
    assert caught.value.errno == errno.EBADF


def test_a_device_outlives_reopens_and_ends_with_its_image(disk: ImageBlockDevice) -> None:
    for cache in ("none", "writeback", "directsync"):
        disk.image.reopen(cache=cache)
        disk.write_block(2, block(2000))
        assert disk.read_block(2) == block(2000)
    disk.image.close()
    with pytest.raises(fdstash.ClosedError):
        disk.read_block(0)


def test_buffers_of_wider_items_count_in_bytes(disk: ImageBlockDevice) -> None:
    numbers = array("H", [0]) * 512
    assert disk.read_blocks_into(1, numbers) == 2
    assert numbers.tobytes() == block(1) + block(2)
    disk.write_blocks(10, numbers)
    assert disk.read_blocks(10, 2) == block(1) + block(2)
