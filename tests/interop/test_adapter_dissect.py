"""dissect's readers find partitions, file systems and files on our image."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdstash
from tests.support.disks import noise
from tests.support.guest_disks import import_flat, make_ext4, partitioned
from tests.support.need import need_package

CONTENT = noise(700_000, 4)
START = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[fdstash.Image]:
    files = {"hello.txt": b"hello\n", "big.bin": CONTENT}
    disk = partitioned(make_ext4(tmp_path, files), start=START)
    # The end lies in the middle of what dissect reads at once.
    path = import_flat(tmp_path / "disk.vmdk", disk + bytes(512), extent_size=3 * 512 * 1000)
    with fdstash.open(path, "r+") as opened:
        yield opened


def test_a_partition_and_its_file_system_are_read(image: fdstash.Image) -> None:
    volume = need_package("dissect.volume.disk", "dissect.volume")
    extfs = need_package("dissect.extfs", "dissect.extfs")
    from fdstash.adapters.dissect import ImageStream

    (partition,) = volume.Disk(ImageStream(image)).partitions
    assert partition.offset == START
    system = extfs.ExtFS(partition.open())
    assert system.get("hello.txt").open().read() == b"hello\n"
    with system.get("big.bin").open() as file:
        assert file.read(100_000) == CONTENT[:100_000]
        for options in ({"cache": "none"}, {"mode": "r"}, {"cache": "writeback", "mode": "r+"}):
            image.reopen(**options)
            file.seek(1234)
            assert file.read() == CONTENT[1234:], options


def test_a_target_takes_it_as_a_raw_container(image: fdstash.Image) -> None:
    target = need_package("dissect.target", "dissect.target").Target()
    raw = need_package("dissect.target.containers.raw", "dissect.target")
    from fdstash.adapters.dissect import ImageStream

    container = raw.RawContainer(ImageStream(image))
    assert container.size == image.size
    target.disks.add(container)
    target.disks.apply()
    target.volumes.apply()
    (system,) = target.filesystems.entries
    assert system.path("/big.bin").read_bytes() == CONTENT


def test_the_stream_reads_what_the_image_does(image: fdstash.Image) -> None:
    need_package("dissect.util", "dissect.util")
    from fdstash.adapters.dissect import ImageStream

    stream = ImageStream(image, align=4096)
    assert (stream.size, stream.align, stream.image) == (image.size, 4096, image)
    for offset, length in ((0, 1), (4095, 2), (511, 9000), (image.size - 700, 700)):
        stream.seek(offset)
        assert stream.read(length) == image.pread(length, offset)
    stream.seek(-10, io.SEEK_END)
    assert stream.read(4096) == bytes(10)
    assert stream.read(1) == b""
    stream.close()
    assert image.pread(2, 510) == b"\x55\xaa"


def test_what_the_image_raises_reaches_the_reader(image: fdstash.Image) -> None:
    need_package("dissect.util", "dissect.util")
    from fdstash.adapters.dissect import ImageStream

    stream = ImageStream(image)
    image.close()
    with pytest.raises(fdstash.ClosedError):
        stream.read(1)
