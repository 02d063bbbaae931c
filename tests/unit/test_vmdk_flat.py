from __future__ import annotations

import errno
import json
import os
import posixpath
import random
import subprocess
from pathlib import Path

import pytest

from fdstash.errors import (
    FormatError,
    ImageIOError,
    OptionError,
    RefusedError,
    UnsupportedFormatError,
)
from fdstash.formats.base import Kind, Segment
from fdstash.formats.vmdk.disk import Vmdk
from tests.support.children import FolderOpener, MemoryChild, MemoryOpener, guest_bytes
from tests.support.need import need_program

HEAD = '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="custom"\n'


def open_text(
    extents: str,
    *,
    head: str = HEAD,
    writable: bool = False,
    opener: MemoryOpener | None = None,
    **options: object,
) -> Vmdk:
    child = MemoryChild((head + extents).encode())
    return Vmdk.open(child, opener or MemoryOpener(), writable=writable, options=options)


def refused(extents: str, *, head: str = HEAD, writable: bool = False) -> FormatError:
    with pytest.raises(FormatError) as caught:
        open_text(extents, head=head, writable=writable)
    assert caught.value.file == "disk.vmdk"
    return caught.value


def test_each_extent_is_a_segment() -> None:
    image = open_text(
        'RW 10 FLAT "a" 0\nRW 20 ZERO\nRDONLY 30 FLAT "b" 5\nNOACCESS 40 FLAT "c" 0\n'
        'RW 50 VMFS "d"\nRDONLY 60 ZERO\nNOACCESS 1 SPARSE "e"\nRW 5 FLAT "a" 100\n'
    )
    assert image.segments() == [
        Segment(0, 10 * 512, Kind.DATA, 1, 0),
        Segment(10 * 512, 20 * 512, Kind.ZERO),
        Segment(30 * 512, 30 * 512, Kind.DATA, 3, 5 * 512, readonly=True),
        Segment(60 * 512, 40 * 512, Kind.DENIED),
        Segment(100 * 512, 50 * 512, Kind.DATA, 2, 0),
        Segment(150 * 512, 60 * 512, Kind.ZERO, readonly=True),
        Segment(210 * 512, 1 * 512, Kind.DENIED),
        Segment(211 * 512, 5 * 512, Kind.DATA, 1, 100 * 512),
    ]
    assert image.size == 216 * 512
    assert [file.name for file in image.files] == ["disk.vmdk", "a", "d", "b"]


def test_every_extent_is_extracted_and_each_file_once() -> None:
    image = open_text('RW 10 FLAT "a" 0\nRW 10 FLAT "b" 0\nRW 10 FLAT "a" 10\n')
    assert [file.name for file in image.extract_files()] == ["disk.vmdk", "a", "b"]
    assert image.files[0] is image.file


def test_the_opener_gets_the_text_of_the_header_and_writable_names_first() -> None:
    opener = MemoryOpener(same=posixpath.normpath)
    open_text(
        'RDONLY 10 FLAT "./a" 90\nRW 10 FLAT "sub folder/b" 0\nRW 10 FLAT "a" 0\n'
        'RDONLY 1 FLAT "a" 80\nNOACCESS 10 FLAT "/etc/shadow" 0\n',
        opener=opener,
    )
    assert opener.asked == [("sub folder/b", True), ("a", True), ("./a", False)]


@pytest.mark.parametrize(
    "kind",
    [
        "monolithicFlat",
        "MONOLITHICFLAT",
        "twoGbMaxExtentFlat",
        "2GbMaxExtentFlat",
        "vmfs",
        "vmfsThin",
        "vmfsPreallocated",
        "vmfsEagerZeroedThick",
        "custom",
        "fullDevice",
        "partitionedDevice",
    ],
)
def test_every_type_made_of_flat_extents_is_opened(kind: str) -> None:
    assert open_text('RW 10 FLAT "a" 0\n', head=HEAD.replace("custom", kind)).size == 5120


@pytest.mark.parametrize(
    ("kind", "text"),
    [("vmfsRDM", "not opened"), ("newKind", "'newKind' are not opened")],
)
def test_another_type_is_refused_by_name(kind: str, text: str) -> None:
    error = refused('RW 10 FLAT "a"\n', head=HEAD.replace("custom", kind))
    assert isinstance(error, UnsupportedFormatError)
    assert error.field == "createType"
    assert text in str(error)


@pytest.mark.parametrize("data", [b"", b"\0", bytes(1 << 20), b"RW 5 ZERO\n", b"QFI\xfb"])
def test_what_is_no_descriptor_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="this is no VMDK") as caught:
        Vmdk.open(MemoryChild(data), MemoryOpener(), writable=False, options={})
    assert caught.value.field == "magic"


def test_an_image_has_no_options() -> None:
    with pytest.raises(OptionError, match="vmdk has no option 'offset'; it takes no options"):
        open_text('RW 10 FLAT "a" 0\n', offset=5)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('RW 0 FLAT "a" 0', "sectors"),
        ("NOACCESS 0 ZERO", "sectors"),
        ("RW 18014398509481984 ZERO", "sectors"),
        (f"RW {2**63 - 1} ZERO", "sectors"),
        ('RW 18014398509481983 FLAT "a" 1', "offset"),
        (f'RW 1 FLAT "a" {2**63 - 1}', "offset"),
        ('RW 10 VSANSPARSE "a"', "extent type"),
        ('RW 10 VMFSRDM "a"', "extent type"),
        ('RW 10 VMFSRAW "a"', "extent type"),
        ('RW 10 LUMPY "a"', "extent type"),
        ('RW 10 FLAT "" 0', "file name"),
        ("RW 10 FLAT a 0", "file name"),
        ("RW 10 VMFS", "file name"),
        ('RW 10 FLAT "disk.vmdk" 0', "file name"),
        ('RW 10 FLAT "./disk.vmdk" 0', "file name"),
        ('RW 10 FLAT "x/..//disk.vmdk" 0', "file name"),
    ],
)
def test_a_wrong_extent_is_refused_with_place_and_field(line: str, field: str) -> None:
    error = refused(f'RW 1 FLAT "first" 0\n{line}\n')
    assert error.field == field
    assert error.offset == len(HEAD) + len('RW 1 FLAT "first" 0\n')
    assert error.message.startswith("extent 1: ")


def test_the_whole_disk_must_be_addressable() -> None:
    half = "RW 9007199254740991 ZERO\n"
    assert open_text(half * 2).size == 2 * 9007199254740991 * 512
    error = refused(half * 3)
    assert error.field == "sectors"
    assert error.offset == len(HEAD) + 2 * len(half)


def test_an_image_without_extents_is_refused() -> None:
    assert refused("").field == "extents"


def test_an_image_with_nothing_to_write_is_opened_read_only_alone() -> None:
    text = 'RDONLY 10 FLAT "a" 0\nNOACCESS 1 ZERO\nRW 1 ZERO\n'
    image = open_text(text)
    with pytest.raises(FormatError, match="open it read-only") as of_reopen:
        image.can_write()
    of_open = refused(text, writable=True)
    assert str(of_open) == str(of_reopen.value)
    open_text(text + 'RW 1 FLAT "b" 0\n', writable=True).can_write()


def test_a_refusal_to_write_comes_before_any_extent_is_opened() -> None:
    opener = MemoryOpener()
    with pytest.raises(FormatError):
        open_text('RDONLY 10 FLAT "a" 0\n', writable=True, opener=opener)
    assert opener.asked == []


def test_an_extent_beyond_its_file_is_refused() -> None:
    opener = MemoryOpener(size=10 * 512)
    open_text('RW 9 FLAT "a" 1\n', opener=opener)
    with pytest.raises(FormatError, match="'a' has 5120 bytes, the extent needs 5632") as caught:
        open_text('RW 1 FLAT "b" 0\nRW 10 FLAT "a" 1\n', opener=opener)
    assert (caught.value.file, caught.value.field) == ("disk.vmdk", "sectors")
    assert caught.value.offset == len(HEAD) + len('RW 1 FLAT "b" 0\n')


@pytest.mark.parametrize(
    ("extents", "second"),
    [
        ('RW 10 FLAT "a" 0\nRW 10 FLAT "a" 9\n', 1),
        ('RW 10 FLAT "a" 9\nRW 10 FLAT "a" 0\n', 1),
        ('RW 10 FLAT "a" 0\nRDONLY 1 FLAT "a" 5\n', 1),
        ('RDONLY 1 FLAT "a" 5\nRW 10 FLAT "a" 0\n', 1),
        ('RW 10 FLAT "a" 0\nRW 10 FLAT "b" 0\nRW 10 FLAT "./a" 0\n', 2),
        ('RW 100 FLAT "a" 0\nRDONLY 1 FLAT "b" 0\nRW 1 FLAT "a" 50\n', 2),
        ('RDONLY 100 FLAT "a" 0\nRDONLY 1 FLAT "a" 9\nRW 1 FLAT "a" 50\n', 2),
        ('RW 9 FLAT "a" 0\nRDONLY 5 FLAT "a" 20\nRDONLY 5 FLAT "a" 22\nRW 2 FLAT "a" 8\n', 3),
    ],
)
def test_extents_that_overlap_in_a_file_are_refused_if_one_is_written(
    extents: str, second: int
) -> None:
    with pytest.raises(FormatError, match=f"extent {second}: it overlaps") as caught:
        open_text(extents, opener=MemoryOpener(same=posixpath.normpath))
    lines = extents.splitlines(keepends=True)
    assert caught.value.offset == len(HEAD) + sum(map(len, lines[:second]))


def test_extents_may_share_a_file() -> None:
    image = open_text(
        'RW 10 FLAT "a" 10\nRW 10 FLAT "a" 0\nRW 10 FLAT "a" 20\nRW 20 FLAT "b" 0\n'
        'RDONLY 10 FLAT "c" 0\nRDONLY 10 FLAT "c" 0\nNOACCESS 30 FLAT "a" 0\n'
    )
    assert [segment.file_offset // 512 for segment in image.segments()[:3]] == [10, 0, 20]
    assert len(image.files) == 4


def test_a_descriptor_that_names_itself_by_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    path.write_text(HEAD + 'RW 1 FLAT "other" 0\n')
    for make in (os.symlink, os.link):
        make(path, tmp_path / "other")
        with (
            FolderOpener(path) as opener,
            pytest.raises(FormatError, match="names itself") as caught,
        ):
            opener.open_image(Vmdk)
        assert caught.value.field == "file name"
        os.unlink(tmp_path / "other")


def test_what_the_opener_refuses_or_misses_goes_through(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    for name, error in (("../secret", RefusedError), ("/etc/passwd", RefusedError)):
        path.write_text(f'{HEAD}RW 1 FLAT "{name}" 0\n')
        with FolderOpener(path) as opener, pytest.raises(error):
            opener.open_image(Vmdk)
    path.write_text(f'{HEAD}RW 1 FLAT "gone" 0\n')
    with FolderOpener(path) as opener, pytest.raises(FileNotFoundError) as caught:
        opener.open_image(Vmdk)
    assert caught.value.filename == str(tmp_path / "gone")


def test_an_image_cannot_be_resized() -> None:
    with pytest.raises(ImageIOError, match="cannot be resized") as caught:
        open_text('RW 10 FLAT "a" 0\n').resize(512)
    assert caught.value.errno == errno.ENOTSUP


def test_a_descriptor_too_long_is_not_read() -> None:
    child = MemoryChild(HEAD.encode(), size=1 << 30)
    with pytest.raises(FormatError, match="this file has 1073741824") as caught:
        Vmdk.open(child, MemoryOpener(), writable=False, options={})
    assert caught.value.field == "descriptor"
    assert sum(n for n, _offset in child.reads) <= 4096


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentFlat"])
def test_what_qemu_makes_is_read_right(subformat: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    raw = tmp_path / "disk.raw"
    size = 5 << 20
    raw.write_bytes(random.Random(7).randbytes(size))
    qemu_img = need_program("qemu-img", "qemu-utils")
    convert = [qemu_img, "convert", "-O", "vmdk", "-o", f"subformat={subformat}", "-f", "raw"]
    subprocess.run([*convert, str(raw), str(path)], check=True)
    with FolderOpener(path) as opener:
        image = opener.open_image(Vmdk)
        assert guest_bytes(image) == raw.read_bytes()
        info = image.info()
    told = subprocess.run(
        [qemu_img, "info", "--output", "json", str(path)], check=True, capture_output=True
    )
    data = json.loads(told.stdout)["format-specific"]["data"]
    assert info["cid"] == data["cid"]
    assert info["parent-cid"] == data["parent-cid"]
    assert info["create-type"] == data["create-type"] == subformat
    extents = info["extents"]
    assert isinstance(extents, list)
    for ours, theirs in zip(extents, data["extents"], strict=True):
        assert theirs.items() <= ours.items()
    json.dumps(info)
