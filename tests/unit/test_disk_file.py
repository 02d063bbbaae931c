"""The file object for emulators: what `open(path, "r+b")` gives them, on an image."""

from __future__ import annotations

import errno
import io
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash.adapters.disk_file import DiskFile
from tests.support.disks import make_flat

#: Of an RK05 cartridge: 203 cylinders, 2 surfaces, 12 sectors, 512 bytes.
SIZE = 203 * 2 * 12 * 512
SECTOR = 512


@pytest.fixture
def image(tmp_path: Path) -> Iterator[fdstash.Image]:
    path = tmp_path / "rk05.vmdk"
    fdstash.create(path, "vmdk", SIZE, subformat="twoGbMaxExtentFlat", extent_size=1000 * SECTOR)
    with fdstash.open(path, "r+") as opened:
        yield opened


def test_sectors_are_read_and_written_as_a_controller_does(image: fdstash.Image) -> None:
    file = DiskFile(image)
    words = array("H", range(256))
    for sector in (0, 999, 4871):
        file.seek(sector * SECTOR)
        assert file.write(words) == SECTOR
        assert file.tell() == (sector + 1) * SECTOR
    file.seek(999 * SECTOR)
    assert file.read(SECTOR) == words.tobytes()
    # A transfer is of any number of words, across any boundary.
    file.seek(999 * SECTOR + 2)
    assert file.read(2 * SECTOR) == words.tobytes()[2:] + bytes(SECTOR + 2)


def test_what_was_written_is_in_the_image_at_once(image: fdstash.Image) -> None:
    file, other = DiskFile(image), DiskFile(image)
    file.seek(3)
    file.write(b"now")
    assert image.pread(3, 3) == b"now"
    other.seek(3)
    assert other.read(3) == b"now"


@pytest.mark.parametrize("offset", [SIZE - 1, SIZE - 511, SIZE, SIZE + 512])
def test_a_write_that_would_leave_the_disk_writes_nothing(
    image: fdstash.Image, offset: int
) -> None:
    file = DiskFile(image)
    file.seek(offset)
    with pytest.raises(fdstash.ImageIOError) as caught:
        file.write(b"\xff" * SECTOR)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == image.name
    assert file.tell() == offset
    assert image.pread(SECTOR, SIZE - SECTOR) == bytes(SECTOR)


def test_reads_are_short_only_at_the_end(image: fdstash.Image) -> None:
    file = DiskFile(image)
    assert file.seek(-10, io.SEEK_END) == SIZE - 10
    assert file.read(SECTOR) == bytes(10)
    assert file.read(SECTOR) == b""
    assert file.write(b"") == 0


def test_flush_and_close_make_it_durable_and_leave_the_image_open(
    image: fdstash.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = []
    real = fdstash.Image.flush
    monkeypatch.setattr(fdstash.Image, "flush", lambda self: (flushes.append(self), real(self)))
    file = DiskFile(image)
    file.flush()
    assert flushes == [image]
    file.close()
    file.close()
    assert flushes == [image, image]
    assert file.closed
    assert not image.closed
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_a_read_only_disk_refuses_writes_until_it_is_writable_again(image: fdstash.Image) -> None:
    file = DiskFile(image)
    image.reopen(mode="r")
    assert not file.writable()
    with pytest.raises(fdstash.ImageIOError) as caught:
        file.write(bytes(SECTOR))
    assert caught.value.errno == errno.EBADF
    file.flush()
    image.reopen(mode="r+", cache="none")
    assert file.write(b"\x11" * 700) == 700
    assert image.pread(700, 0) == b"\x11" * 700


def test_a_buffered_file_over_it_is_as_good_as_one_on_disk(tmp_path: Path) -> None:
    disk = make_flat(tmp_path)
    expected = io.BytesIO(disk.guest_bytes())
    with fdstash.open(disk.path, "r+") as image:
        with io.BufferedRandom(DiskFile(image), 4096) as file:
            for number, (offset, length) in enumerate(
                [(0, 5), (4000, 200), (18_900, 9000), (100, 1), (disk.size - 3, 3)]
            ):
                for each in (file, expected):
                    each.seek(offset)
                    each.write(bytes([number + 1]) * length)
                    each.seek(max(0, offset - 50))
                assert file.read(length + 100) == expected.read(length + 100)
            image.reopen(cache="none")
        assert image.pread(disk.size, 0) == expected.getvalue()


def test_it_has_the_name_of_its_image_and_no_descriptor(image: fdstash.Image) -> None:
    file = DiskFile(image)
    assert file.name == image.name
    with pytest.raises(OSError, match="fileno"):
        file.fileno()
