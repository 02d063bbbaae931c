"""What is refused of a VMDK with sparse extents, and of one with a parent, when it is opened."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash.errors import FormatError
from fdstash.formats.vmdk.disk import Vmdk
from fdstash.formats.vmdk.stream_writer import StreamWriter
from tests.support.children import FolderOpener, MemoryChild, MemoryOpener

HEAD = '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="custom"\n'
SECTORS = 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sparse extents a-s001.vmdk and b-s001.vmdk, each of `SECTORS`, and a flat one."""
    for name in ("a.vmdk", "b.vmdk"):
        options: dict[str, Any] = {"subformat": "twoGbMaxExtentSparse"}
        fdstash.create(tmp_path / name, "vmdk", SECTORS * 512, **options)
    with (tmp_path / "stream").open("wb") as file, StreamWriter(file, SECTORS * 512):
        pass
    (tmp_path / "flat").write_bytes(bytes(SECTORS * 512))
    return tmp_path


def opened(folder: Path, extents: str, *, writable: bool = False, head: str = HEAD) -> Vmdk:
    path = folder / "disk.vmdk"
    path.write_text(head + extents)
    with FolderOpener(path, writable=writable) as opener:
        return opener.open_image(Vmdk)


A = f'RW {SECTORS} SPARSE "a-s001.vmdk"\n'
B = f'RW {SECTORS} SPARSE "b-s001.vmdk"\n'


def test_sparse_extents_stand_beside_any_other(folder: Path) -> None:
    image = opened(folder, f'{A}RW 7 ZERO\nRDONLY 9 FLAT "flat" 3\n{B}NOACCESS 1 SPARSE "none"\n')
    assert [table.start // 512 for table in image.tables()] == [0, SECTORS + 16]
    assert [segment.start // 512 for segment in image.segments()] == [
        0,
        SECTORS,
        SECTORS + 7,
        SECTORS + 16,
        2 * SECTORS + 16,
    ]
    assert image.size == (2 * SECTORS + 17) * 512


@pytest.mark.parametrize(
    ("second", "field", "text"),
    [
        ('RW 199 SPARSE "b-s001.vmdk"', "sectors", "199 sectors, but .* that it has 200"),
        ('RW 201 SPARSE "b-s001.vmdk"', "sectors", "201 sectors"),
        ('RW 200 SPARSE "a-s001.vmdk"', "offset", "it overlaps extent 0"),
        ('RW 1 FLAT "a-s001.vmdk" 0', "offset", "it overlaps extent 0"),
        ('RW 200 SPARSE "flat"', "magicNumber", "no sparse extent"),
        ('RW 200 VMFSSPARSE "flat"', "magicNumber", "no ESX sparse extent"),
        ('RW 200 SESPARSE "flat"', "magic", "no seSparse extent"),
        ('RW 200 VMFSSPARSE "b-s001.vmdk"', "magicNumber", "no ESX sparse extent"),
        ('RW 200 SPARSE "disk.vmdk"', "file name", "names itself"),
    ],
)
def test_a_wrong_extent_is_refused(second: str, field: str, text: str, folder: Path) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        opened(folder, f"{A}{second}\n")
    assert caught.value.field == field


def test_a_sparse_file_is_one_extent_also_where_it_is_only_read(folder: Path) -> None:
    line = A.replace("RW", "RDONLY")
    with pytest.raises(FormatError, match="extent 1: extent 0 is in .* already") as caught:
        opened(folder, line + line)
    assert caught.value.offset == len(HEAD) + len(line)


def test_an_image_whose_extents_cannot_be_written_is_opened_read_only_alone(folder: Path) -> None:
    stream = f'RW {SECTORS} SPARSE "stream"\n'
    assert opened(folder, stream).size == SECTORS * 512
    with pytest.raises(FormatError, match="open it read-only and copy it") as caught:
        opened(folder, stream, writable=True)
    assert caught.value.field == "createType"
    with pytest.raises(FormatError, match="none is RW"):
        opened(folder, A.replace("RW", "RDONLY"), writable=True)
    image = opened(folder, stream + A, writable=True)
    assert [table.readonly for table in image.tables()] == [True, False]


def test_an_extent_without_a_descriptor_is_refused_by_name(folder: Path) -> None:
    for name in ("a-s001.vmdk", "stream"):
        with (
            FolderOpener(folder / name) as opener,
            pytest.raises(FormatError, match="holds no descriptor") as caught,
        ):
            opener.open_image(Vmdk)
        assert caught.value.field == "descriptorOffset"


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"COWD\1\0\0\0", "vmfsSparse"), (struct.pack("<2Q", 0xCAFEBABE, 0x200000001), "seSparse")],
)
def test_an_extent_of_esx_itself_is_refused_by_name(start: bytes, kind: str) -> None:
    child = MemoryChild(start + bytes(4096))
    with pytest.raises(FormatError, match=f"an extent .{kind}.*name the descriptor") as caught:
        Vmdk.open(child, MemoryOpener(), writable=False, options={})
    assert (caught.value.field, caught.value.offset) == ("magic", 0)


def test_a_parent_must_be_named(folder: Path) -> None:
    head = HEAD.replace("ffffffff", "0000000a")
    with pytest.raises(FormatError, match="does not say where") as caught:
        opened(folder, A, head=head)
    assert caught.value.field == "parentFileNameHint"
    named = opened(folder, A, head=f'{head}parentFileNameHint="b.vmdk"\n')
    assert named.backing_file == "b.vmdk"
    assert opened(folder, A, head=HEAD.replace("ffffffff", "FFFFFFFF")).backing_file is None
