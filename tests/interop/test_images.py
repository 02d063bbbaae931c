"""Images that qemu-img made are read right by us, and images of ours by qemu-img."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import pytest

import fdstash
from tests.support.disks import ExtentSpec, descriptor_text, make_flat, noise
from tests.support.qemu_tools import create_with_qemu, qemu_img, qemu_io

_MIB = 1 << 20
_GIB = 1 << 30
#: format, size, options of create, which both tools know by the same names
_KINDS = {
    "raw": ("raw", 8 * _MIB, {}),
    "monolithicFlat": ("vmdk", 8 * _MIB + 512, {"subformat": "monolithicFlat"}),
    "twoGbMaxExtentFlat": ("vmdk", 5 * _GIB + 512, {"subformat": "twoGbMaxExtentFlat"}),
}
_OURS = _KINDS | {"vmfs": ("vmdk", 8 * _MIB, {"subformat": "vmfs"})}


def _places(size: int) -> list[tuple[int, int]]:
    """Ranges of whole sectors: at both ends, and across each boundary of 2 GiB."""
    inner = [(at - 1536, 4096) for at in range(2 * _GIB, size, 2 * _GIB)]
    return [(0, 4096), (5 * 512, 512), (_MIB - 512, 9216), *inner, (size - 512, 512)]


def _qemu(*arguments: Any) -> Any:
    ran = qemu_img(*arguments)
    assert ran.status == 0, ran
    return json.loads(ran.output)


def _assert_same_map(image: fdstash.Image, path: Path, format: str) -> None:
    """The same runs of data and of zeros; QEMU calls a hole of a flat extent data, and zero."""
    runs = _qemu("map", "--output", "json", "-U", "-f", format, path)
    theirs = [(run["start"], run["length"], not run["zero"]) for run in runs]
    ours = [(e.offset, e.length, e.kind == "data") for e in image.extents()]
    assert _joined(ours) == _joined(theirs)
    assert len(ours) > 1


def _joined(runs: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    found: list[tuple[int, int, bool]] = []
    for run in runs:
        if found and found[-1][2] == run[2] and sum(found[-1][:2]) == run[0]:
            start, length, data = found.pop()
            found.append((start, length + run[1], data))
        else:
            found.append(run)
    return found


@pytest.mark.parametrize("kind", _KINDS)
def test_an_image_of_qemu_is_read_right(kind: str, tmp_path: Path) -> None:
    format, size, options = _KINDS[kind]
    path = tmp_path / f"disk.{format}"
    create_with_qemu(path, format, size, **options)
    places = dict(sorted(dict(_places(size)).items()))
    writes = [f"write -P {n + 1} {at} {length}" for n, (at, length) in enumerate(places.items())]
    ran = qemu_io(path, *writes, format=format)
    assert ran.status == 0, ran
    wanted = {}
    for number, (at, length) in enumerate(places.items()):
        for sector in range(at, at + length, 512):
            wanted[sector] = bytes([number + 1]) * 512
    with fdstash.open(path, format=format) as image:
        assert image.size == size
        for at, data in wanted.items():
            assert image.pread(512, at) == data
        for at in (64 * 1024, 2 * _MIB, size // 2, size - 1024):
            assert image.pread(512, at) == wanted.get(at, bytes(512))
        _assert_same_map(image, path, format)


@pytest.mark.parametrize("kind", _OURS)
def test_an_image_of_ours_is_its_raw_twin_for_qemu(kind: str, tmp_path: Path) -> None:
    format, size, options = _OURS[kind]
    path, twin = tmp_path / f"disk.{format}", tmp_path / "twin.raw"
    fdstash.create(path, format, size, **options)
    with twin.open("wb") as file:
        file.truncate(size)
    with fdstash.open(path, "r+", format=format) as image, twin.open("r+b") as file:
        for number, (at, length) in enumerate(_places(size)):
            data = random.Random(number).randbytes(length)
            image.pwrite(data, at)
            file.seek(at)
            file.write(data)
        image.zero(512, 5 * 512)
        file.seek(5 * 512)
        file.write(bytes(512))
        file.flush()
        image.reopen(cache="writethrough")
        image.flush()
        _assert_same_map(image, path, format)
    compare: list[Any] = ["compare", "-f", format, "-F", "raw", path, twin]
    assert qemu_img(*compare).status == 0, qemu_img(*compare)
    info = _qemu("info", "--output", "json", "-f", format, path)
    assert info["virtual-size"] == size
    if format == "vmdk":
        data = info["format-specific"]["data"]
        assert data["create-type"] == kind
        assert len(data["extents"]) == (3 if size > 4 * _GIB else 1)
    # The comparison can fail: one byte that differs is found.
    with twin.open("r+b") as file:
        file.seek(size - 1)
        last = file.read(1)
        file.seek(size - 1)
        file.write(bytes([last[0] ^ 1]))
    assert qemu_img(*compare).status == 1


def test_starts_folders_and_further_fields_mean_what_they_mean_to_qemu(tmp_path: Path) -> None:
    disk = make_flat(
        tmp_path,
        (
            ExtentSpec("RW", 37, name="deep/er/a.bin", start=5),
            ExtentSpec("RW", 91, name="b.bin", start=3, further='partitionUUID "x y" 7'),
            ExtentSpec("RW", 8, name="deep/c.bin"),
        ),
        create_type="monolithicFlat",
    )
    before, data = disk.guest_bytes(), noise(50_000, 9)
    with fdstash.open(disk.path, "r+") as image:
        assert image.pread(image.size, 0) == before
        image.pwrite(data, 30 * 512)
    twin = tmp_path / "twin.raw"
    twin.write_bytes(before[: 30 * 512] + data + before[30 * 512 + len(data) :])
    ran = qemu_img("compare", "-f", "vmdk", "-F", "raw", disk.path, twin)
    assert ran.status == 0, ran


def test_a_zero_extent_reads_as_zeros_and_refuses_bytes(tmp_path: Path) -> None:
    # No twin by qemu-img: it drops these lines, and all that follows moves.
    disk = make_flat(
        tmp_path,
        (
            ExtentSpec("RW", 37, name="a.bin"),
            ExtentSpec("RW", 64, "ZERO"),
            ExtentSpec("RW", 9, name="b.bin"),
        ),
    )
    before = disk.guest_bytes()
    with fdstash.open(disk.path, "r+") as image:
        assert image.pread(image.size, 0) == before
        for offset in (36 * 512, 40 * 512, 100 * 512):
            with pytest.raises(fdstash.ImageIOError) as caught:
                image.pwrite(b"x" * 1024, offset)
            assert caught.value.errno == errno.EROFS
            assert image.pread(image.size, 0) == before
        kinds = [e.kind for e in image.extents(64 * 512, 37 * 512)]
        assert kinds == ["zero"]


def test_a_rdonly_extent_is_read_and_a_write_to_it_writes_nothing(tmp_path: Path) -> None:
    disk = make_flat(
        tmp_path,
        (ExtentSpec("RW", 16, name="a.bin"), ExtentSpec("RDONLY", 16, name="b.bin", start=2)),
    )
    before, wanted = [f.read_bytes() for f in disk.files[1:]], disk.guest_bytes()
    with fdstash.open(disk.path, "r+") as image:
        assert image.pread(image.size, 0) == wanted
        for offset in (16 * 512, 16 * 512 + 7, 15 * 512):
            with pytest.raises(fdstash.ImageIOError) as caught:
                image.pwrite(b"x" * 1024, offset)
            assert caught.value.errno == errno.EROFS
            assert image.pread(image.size, 0) == wanted
    assert [f.read_bytes() for f in disk.files[1:]] == before


def test_a_noaccess_extent_gives_eacces_and_its_file_is_not_needed(tmp_path: Path) -> None:
    disk = make_flat(
        tmp_path, (ExtentSpec("RW", 16, name="a.bin"), ExtentSpec("NOACCESS", 16, name="b.bin"))
    )
    (tmp_path / "b.bin").unlink()
    with fdstash.open(disk.path, "r+") as image:
        assert image.size == 32 * 512
        assert image.pread(16 * 512, 0) == disk.guest_bytes()[: 16 * 512]
        for request in (
            lambda: image.pread(512, 16 * 512),
            lambda: image.pwrite(bytes(512), 16 * 512),
            lambda: image.pwrite(b"x" * 1024, 15 * 512),
        ):
            with pytest.raises(fdstash.ImageIOError) as caught:
                request()
            assert caught.value.errno == errno.EACCES
        assert image.pread(16 * 512, 0) == disk.guest_bytes()[: 16 * 512]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_comments_and_line_ends_of_a_descriptor_do_not_matter(end: str, tmp_path: Path) -> None:
    extents = (ExtentSpec("RW", 21, name="a.bin"), ExtentSpec("RW", 43, name="b.bin", start=1))
    disk = make_flat(tmp_path, extents, create_type="monolithicFlat")
    text = descriptor_text(extents, "monolithicFlat").replace(
        "# Extent description", '# Extent description\n\n  # RW 9 FLAT "none.bin" 0\n#'
    )
    disk.path.write_bytes(text.replace("\n", end).encode())
    with fdstash.open(disk.path) as image:
        assert image.format == "vmdk"
        assert image.pread(image.size, 0) == disk.guest_bytes()
