"""The Sleuth Kit reads a file system on our image, which is reopened meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from tests.support.disks import noise
from tests.support.guest_disks import import_flat, make_ext4
from tests.support.need import need_package

CONTENT = noise(700_000, 3)


@pytest.fixture
def pytsk3() -> Any:
    return need_package("pytsk3", "pytsk3")


@pytest.fixture
def image(tmp_path: Path) -> Iterator[fdstash.Image]:
    files = {"hello.txt": b"hello\n", "big.bin": CONTENT}
    path = import_flat(tmp_path / "disk.vmdk", make_ext4(tmp_path, files))
    with fdstash.open(path, "r+") as opened:
        yield opened


def read(file: Any) -> bytes:
    data: bytes = file.read_random(0, file.info.meta.size)
    return data


def test_the_sleuth_kit_reads_files_from_a_vmdk(pytsk3: Any, image: fdstash.Image) -> None:
    from fdstash.adapters.tsk import ImageInfo

    info = ImageInfo(image)
    assert isinstance(info, pytsk3.Img_Info)
    assert info.get_size() == image.size == 8 << 20
    system = pytsk3.FS_Info(info)
    names = {entry.info.name.name for entry in system.open_dir("/")}
    assert {b"hello.txt", b"big.bin"} <= names
    assert read(system.open("/hello.txt")) == b"hello\n"
    assert read(system.open("/big.bin")) == CONTENT


def test_an_open_file_system_reads_on_through_reopens(pytsk3: Any, image: fdstash.Image) -> None:
    from fdstash.adapters.tsk import ImageInfo

    system = pytsk3.FS_Info(ImageInfo(image))
    file = system.open("/big.bin")
    for options in ({"cache": "none"}, {"mode": "r"}, {"cache": "writeback"}, {"mode": "r+"}):
        image.reopen(**options)
        assert read(file) == CONTENT, options


def test_what_the_image_raises_reaches_the_caller(pytsk3: Any, image: fdstash.Image) -> None:
    from fdstash.adapters.tsk import ImageInfo

    info = ImageInfo(image)
    system = pytsk3.FS_Info(info)
    image.close()
    with pytest.raises(RuntimeError, match="the image is closed"):
        system.open("/big.bin")
    with pytest.raises(fdstash.ClosedError):
        info.read(0, 512)


def test_closing_the_info_leaves_the_image_open(pytsk3: Any, image: fdstash.Image) -> None:
    from fdstash.adapters.tsk import ImageInfo

    info = ImageInfo(image)
    info.close()
    assert info.image.pread(2, 1024 + 56) == b"\x53\xef"
