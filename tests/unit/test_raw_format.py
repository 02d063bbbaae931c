from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdstash.errors import FormatError, ImageIOError, LockError, OptionError
from fdstash.formats import raw
from fdstash.formats.base import Kind, Segment
from fdstash.formats.raw import Raw
from tests.support.children import FolderOpener, MemoryChild, MemoryOpener
from tests.support.need import need_program


def open_raw(child: MemoryChild, **options: object) -> Raw:
    return Raw.open(child, MemoryOpener(), writable=True, options=options)


def test_the_whole_file_is_one_run() -> None:
    image = open_raw(MemoryChild(bytes(1000), index=3))
    assert image.size == 1000
    assert image.segments() == (Segment(0, 1000, Kind.DATA, 3, 0),)
    assert list(image.files) == list(image.extract_files()) == [image.file]
    assert image.info() == {}


def test_an_empty_file_has_no_run() -> None:
    assert open_raw(MemoryChild(b"")).segments() == ()


def test_a_window_starts_and_ends_where_it_is_told() -> None:
    image = open_raw(MemoryChild(bytes(1000)), offset=100, size=300)
    assert image.segments() == (Segment(0, 300, Kind.DATA, 0, 100),)
    assert image.info() == {"offset": 100, "size": 300}
    assert open_raw(MemoryChild(bytes(1000)), offset=100).size == 900
    assert open_raw(MemoryChild(bytes(1000)), size=900).size == 900
    assert open_raw(MemoryChild(bytes(1000)), offset=1000).size == 0
    assert open_raw(MemoryChild(bytes(1000)), offset=None, size=None).info() == {}


@pytest.mark.parametrize(
    ("options", "field"),
    [({"offset": 1001}, "offset"), ({"size": 1001}, "size"), ({"offset": 1, "size": 1000}, "size")],
)
def test_a_window_beyond_the_file_is_refused(options: dict[str, int], field: str) -> None:
    with pytest.raises(FormatError, match="the file has only 1000") as caught:
        open_raw(MemoryChild(bytes(1000), "disk.img"), **options)
    assert (caught.value.file, caught.value.field) == ("disk.img", field)


@pytest.mark.parametrize("value", [-1, 2**63, "12", 1.5, True])
@pytest.mark.parametrize("name", ["offset", "size"])
def test_a_window_is_a_number_of_bytes(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name) as caught:
        open_raw(MemoryChild(bytes(1000)), **{name: value})
    assert caught.value.option == name


def test_another_option_is_refused() -> None:
    with pytest.raises(OptionError, match="no option 'ofset'; it takes offset, size"):
        open_raw(MemoryChild(b""), ofset=1)


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 2000))
def test_a_window_never_leaves_the_file(held: int, offset: int, size: int) -> None:
    try:
        image = open_raw(MemoryChild(b"", size=held), offset=offset, size=size)
    except FormatError:
        assert offset + size > held
    else:
        assert all(part.file_offset + part.length <= held for part in image.segments())


def test_resize_grows_with_zeros_and_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * 1000)
    with FolderOpener(path, writable=True) as opener:
        image = opener.open_image(Raw)
        image.resize(3000)
        assert (image.size, image.segments()[0].length) == (3000, 3000)
        assert path.read_bytes() == b"x" * 1000 + bytes(2000)
        image.resize(500)
        assert (image.size, path.stat().st_size) == (500, 500)


def test_neither_a_window_nor_a_device_is_resized() -> None:
    with pytest.raises(ImageIOError, match="window") as caught:
        open_raw(MemoryChild(bytes(10)), size=10).resize(20)
    assert caught.value.errno == errno.ENOTSUP
    device = MemoryChild(bytes(10))
    device.fixed_size = True
    with pytest.raises(ImageIOError, match="device") as caught:
        open_raw(device).resize(20)
    assert caught.value.errno == errno.ENOTSUP
    with pytest.raises(OptionError):
        open_raw(MemoryChild(bytes(10))).resize(-1)


def test_revalidate_sees_a_file_that_became_shorter() -> None:
    child = MemoryChild(bytes(1000))
    image = open_raw(child, offset=100, size=800)
    image.revalidate(lambda file, n, offset: file.pread(n, offset))
    image.can_write()
    image.before_first_write()
    with pytest.raises(FormatError, match="shorter than the 900 bytes"):
        image.revalidate(lambda file, n, offset: bytes(899)[offset : offset + n])
    open_raw(MemoryChild(b"")).revalidate(lambda file, n, offset: b"")


@pytest.mark.parametrize("preallocation", ["off", "falloc", "full"])
def test_create_makes_a_file_of_zeros(preallocation: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    raw.create(path, 3_000_001, preallocation=preallocation)
    assert path.read_bytes() == bytes(3_000_001)
    allocated = path.stat().st_blocks * 512
    assert allocated >= 3_000_001 if preallocation != "off" else allocated < 1 << 20
    assert list(tmp_path.iterdir()) == [path]


def test_create_keeps_owner_and_mode_of_what_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"old")
    path.chmod(0o640)
    raw.create(path, 10)
    assert path.read_bytes() == bytes(10)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_create_goes_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    raw.create(tmp_path / "link", 10)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == bytes(10)


def test_create_replaces_nothing_but_files(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        raw.create(tmp_path, 10)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageIOError, match="only a regular file"):
        raw.create(tmp_path / "fifo", 10)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    with pytest.raises(FileNotFoundError) as caught:
        raw.create(tmp_path / "no" / "disk", 10)
    assert caught.value.filename == str(tmp_path / "no" / "disk")
    with pytest.raises((FormatError, ImageIOError)):
        raw.create(tmp_path / "huge", 2**63)
    with pytest.raises(ImageIOError):
        raw.create(tmp_path / "huge", 2**63 - 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["fifo"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EIO])
def test_create_needs_no_locks_where_there_are_none(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"old")

    def fails(*_arguments: object) -> None:
        raise OSError(code, "made to fail")

    monkeypatch.setattr(fcntl, "fcntl", fails)
    if code == errno.ENOLCK:
        raw.create(path, 10)
        assert path.read_bytes() == bytes(10)
    else:
        with pytest.raises(ImageIOError):
            raw.create(path, 10)
        assert path.read_bytes() == b"old"


def test_create_leaves_an_image_in_use_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"guest data".ljust(4096, b"\0"))
    qemu = subprocess.Popen(
        [need_program("qemu-io", "qemu-utils"), "-f", "raw", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert qemu.stdin
    assert qemu.stdout
    try:
        qemu.stdin.write(b"length\n")
        qemu.stdin.flush()
        while b"4 KiB" not in qemu.stdout.readline():
            pass
        with pytest.raises(LockError, match="in use") as caught:
            raw.create(path, 10)
        assert isinstance(caught.value, BlockingIOError)
    finally:
        qemu.communicate(b"quit\n", timeout=30)
    assert path.read_bytes().startswith(b"guest data")
    raw.create(path, 10)
    assert path.read_bytes() == bytes(10)
