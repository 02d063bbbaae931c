"""What changes in a descriptor once it is open: its CID by us, anything by others."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fdstash.errors import FormatError, ImageIOError
from fdstash.formats.base import FileChild
from fdstash.formats.vmdk import create
from fdstash.formats.vmdk.descriptor import MAX_BYTES
from fdstash.formats.vmdk.disk import Vmdk
from tests.support.children import FolderOpener, MemoryChild, MemoryOpener
from tests.support.need import need_program

HEAD = '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="custom"\n'


def direct(file: FileChild, n: int, offset: int) -> bytes:
    return file.pread(n, offset)


@pytest.mark.parametrize(
    "old", ["12345678", "0", "1", "ff", "fffffffe", "ffffffff", "0000001", "ABCDEF01"]
)
def test_the_first_write_puts_a_new_cid_in_place_of_the_old(old: str) -> None:
    text = HEAD.replace("12345678", old) + 'RW 1 FLAT "a" 0\n# the end'
    child = MemoryChild(text.encode())
    image = Vmdk.open(child, MemoryOpener(), writable=True, options={})
    seen = {int(old, 16)}
    for _ in range(40):
        before = image.info()["cid"]
        image.before_first_write()
        after = child.data.decode()
        assert len(after) == len(text)
        start = text.index("CID=") + 4
        cid = after[start : start + len(old)]
        assert after == text[:start] + cid + text[start + len(old) :]
        assert int(cid, 16) not in (before, 0, 0xFFFFFFFE, 0xFFFFFFFF)
        assert image.info()["cid"] == int(cid, 16)
        seen.add(int(cid, 16))
    assert len(seen) > 10
    image.revalidate(direct)


@pytest.mark.parametrize("line", ["", "CID=odd\n"])
def test_a_descriptor_without_a_cid_is_left_alone(line: str) -> None:
    text = HEAD.replace("CID=12345678\n", line) + 'RW 1 FLAT "a" 0\n'
    child = MemoryChild(text.encode())
    image = Vmdk.open(child, MemoryOpener(), writable=True, options={})
    image.before_first_write()
    assert child.data == text.encode()
    assert image.info()["cid"] is None


def test_a_cid_that_moved_is_not_written_over() -> None:
    child = MemoryChild((HEAD + 'RW 1 FLAT "a" 0\n').encode())
    image = Vmdk.open(child, MemoryOpener(), writable=True, options={})
    child.data[0:0] = b"# a new line\n"
    before = bytes(child.data)
    with pytest.raises(FormatError, match="open the image again") as caught:
        image.before_first_write()
    assert caught.value.field == "CID"
    assert child.data == before


def test_a_cid_not_written_whole_is_an_error() -> None:
    child = MemoryChild((HEAD + 'RW 1 FLAT "a" 0\n').encode())
    image = Vmdk.open(child, MemoryOpener(), writable=True, options={})
    child.pwrite = lambda data, offset, /: 3  # type: ignore[method-assign]
    with pytest.raises(ImageIOError) as caught:
        image.before_first_write()
    assert caught.value.errno == errno.EIO
    assert image.info()["cid"] == 0x12345678


CHANGES: dict[str, tuple[Callable[[str], str], bool]] = {
    "nothing": (lambda text: text, True),
    "the CID": (lambda text: text.replace("12345678", "9"), True),
    "a comment": (lambda text: text.replace("version", "# hello\nversion"), True),
    "the database": (lambda text: text + "ddb.a = 1\n", True),
    "case": (lambda text: text.replace("custom", "CUSTOM").replace("RW", "rw"), True),
    "an extent's length": (lambda text: text.replace("RW 10", "RW 9"), False),
    "an extent's offset": (lambda text: text.replace('"a" 0', '"a" 1'), False),
    "an extent's name": (lambda text: text.replace('"a"', '"c"'), False),
    "an extent's access": (lambda text: text.replace("RW", "RDONLY"), False),
    "an extent more": (lambda text: text + "RW 1 ZERO\n", False),
    "the type": (lambda text: text.replace("custom", "vmfs"), False),
    "the parent": (lambda text: text.replace("ffffffff", "12"), False),
    "everything": (lambda _text: "\0" * 1000, False),
    "the length": (lambda text: text + "#" * MAX_BYTES, False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_revalidate_allows_what_leaves_the_layout_as_it_was(what: str) -> None:
    change, allowed = CHANGES[what]
    text = HEAD + 'RW 10 FLAT "a" 0\nRW 5 FLAT "b" 0\n'
    child = MemoryChild(text.encode())
    image = Vmdk.open(child, MemoryOpener(), writable=True, options={})
    fresh = change(text).encode()
    child.size = len(fresh)

    def read(file: FileChild, n: int, offset: int) -> bytes:
        assert file is child
        return fresh[offset : offset + n]

    segments = image.segments()
    if allowed:
        image.revalidate(read)
        child.data = bytearray(fresh)
        image.before_first_write()
    else:
        with pytest.raises(FormatError):
            image.revalidate(read)
    assert image.segments() == segments


def test_an_extent_that_became_shorter_is_seen() -> None:
    descriptor = MemoryChild((HEAD + 'RW 10 FLAT "a" 0\n').encode())
    image = Vmdk.open(descriptor, MemoryOpener(5120), writable=False, options={})
    child = image.files[1]
    assert isinstance(child, MemoryChild)
    child.size = 5119
    with pytest.raises(FormatError, match="'a' has 5119 bytes, the extent needs 5120"):
        image.check_lengths()


def test_qemu_sees_the_new_cid(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    create.create(path, 1 << 20)
    with FolderOpener(path, writable=True) as opener:
        image = opener.open_image(Vmdk)
        image.before_first_write()
        cid = image.info()["cid"]
    told = subprocess.run(
        [need_program("qemu-img", "qemu-utils"), "info", "--output", "json", str(path)],
        check=True,
        capture_output=True,
    )
    assert json.loads(told.stdout)["format-specific"]["data"]["cid"] == cid
