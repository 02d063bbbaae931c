"""Row 14: descriptor files that lie, and an image that QEMU still takes."""

from __future__ import annotations

import errno
import signal
import struct
import subprocess
from pathlib import Path

import pytest

import fdstash
from fdstash import FormatError, ImageIOError, RefusedError
from tests.support.disks import ExtentSpec, FlatDisk, descriptor_text, make_flat
from tests.support.images import SIZE, read_all
from tests.support.need import need_program, plain_environment
from tests.support.qemu_tools import qemu_img, qemu_io
from tests.support.seen import locked_bytes


def lying(folder: Path, extents: list[ExtentSpec], create_type: str = "monolithicFlat") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "disk.vmdk"
    path.write_text(descriptor_text(extents, create_type))
    return path


def names_of(folder: Path) -> dict[str, str]:
    return {
        "traversal": "../secret",
        "detour": "../images/../secret",
        "absolute": str(folder / "secret"),
        "device": "/dev/zero",
    }


@pytest.mark.parametrize("kind", ["traversal", "detour", "absolute", "device"])
def test_row_14_a_header_names_no_file_outside_its_folder(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_bytes(b"S" * SIZE)
    text = names_of(tmp_path)[kind]
    path = lying(tmp_path / "images", [ExtentSpec("RW", 8, name=text)])
    for mode in ("r", "r+"):
        with pytest.raises(RefusedError, match="resolver=") as caught:
            fdstash.open(path, mode)
        assert caught.value.filename == text
    assert locked_bytes(path) == []


@pytest.mark.parametrize("kind", ["traversal", "detour", "absolute"])
def test_row_14_qemu_reads_what_a_header_names_anywhere(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_bytes(b"S" * SIZE)
    path = lying(tmp_path / "images", [ExtentSpec("RW", 8, name=names_of(tmp_path)[kind])])
    ran = qemu_io(path, f"read -P {ord('S')} 0 4096", format="vmdk", options=["-r"])
    assert ran.status == 0, ran


def limited(limit: str, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A program of QEMU that may die of what it is given, with a limit and no core file."""
    command = [need_program("prlimit", "util-linux"), "--core=0", limit]
    return subprocess.run(
        [*command, need_program(program, "qemu-utils"), *arguments],
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_row_14_an_image_of_read_only_extents_is_read_and_not_written(tmp_path: Path) -> None:
    disk = make_flat(tmp_path, [ExtentSpec("RDONLY", 128, name="a.bin")])
    with fdstash.open(disk.path) as image:
        assert read_all(image) == disk.guest_bytes()
        assert len(image.files) == 2
    with pytest.raises(FormatError, match="none is RW"):
        fdstash.open(disk.path, "r+")


def test_row_14_qemu_dies_of_an_image_of_read_only_extents(tmp_path: Path) -> None:
    disk = make_flat(
        tmp_path, [ExtentSpec("RDONLY", 128, name="a.bin")], create_type="monolithicFlat"
    )
    done = limited("--nofile=300", "qemu-img", "info", disk.path)
    assert done.returncode == -signal.SIGABRT
    assert "num_extents" in done.stderr


def naming_itself(folder: Path) -> dict[str, Path]:
    """A flat extent, one in a detour, and a sparse one that are the descriptor itself."""
    found = {
        "flat": lying(folder / "flat", [ExtentSpec("RW", 1, name="disk.vmdk")]),
        "link": lying(folder / "link", [ExtentSpec("RW", 1, name="other.vmdk")]),
        "sparse": folder / "sparse.vmdk",
    }
    (folder / "link/other.vmdk").symlink_to("disk.vmdk")
    text = descriptor_text([ExtentSpec("RW", 128, "SPARSE", "sparse.vmdk")], "twoGbMaxExtentSparse")
    header = struct.pack(
        *("<4sIIQQQQIQQQB4sH", b"KDMV", 1, 3, 0, 128, 1, 20, 512, 0, 0, 0, 0, b"\n \r\n", 0)
    )
    embedded = text.replace('" 0\n', '"\n').encode().ljust(20 * 512, b"\0")
    found["sparse"].write_bytes(header.ljust(512, b"\0") + embedded + bytes(SIZE))
    return found


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["flat", "link", "sparse"])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_row_14_an_image_that_names_itself_is_refused(tmp_path: Path, kind: str, mode: str) -> None:
    path = naming_itself(tmp_path)[kind]
    with pytest.raises(FormatError) as caught:
        fdstash.open(path, mode, format="vmdk")
    assert caught.value.file == str(path)


def test_row_14_qemu_opens_an_image_that_names_itself_until_descriptors_end(
    tmp_path: Path,
) -> None:
    path = naming_itself(tmp_path)["sparse"]
    done = limited("--nofile=300", "qemu-img", "info", path)
    assert done.returncode != 0
    assert "Too many open files" in done.stderr  # with more of them its stack ends first


def test_row_14_a_device_is_opened_only_where_a_resolver_allows_it(tmp_path: Path) -> None:
    path = lying(tmp_path / "images", [ExtentSpec("RW", 8, name="/dev/zero")])
    with pytest.raises(ImageIOError) as caught:  # allowed by name, and still no disk
        fdstash.open(path, resolver=fdstash.anywhere)
    assert caught.value.errno == errno.EINVAL


def test_what_is_left_of_the_images_is_an_image_to_qemu(flat: FlatDisk) -> None:
    with fdstash.open(flat.path, "r+") as image:
        image.pwrite(b"\x11" * 4096, SIZE - 2048)
    assert qemu_io(flat.path, f"read -P 0x11 {SIZE - 2048} 4096", format="vmdk").status == 0
    assert qemu_img("check", "-f", "vmdk", flat.path).status == 0
