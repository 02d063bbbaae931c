"""What `open` refuses, and what it says then."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, FormatError, ImageIOError, OptionError, UnsupportedFormatError
from tests.support.disks import FlatDisk
from tests.support.images import read_all
from tests.support.kernel import getfl
from tests.support.seen import locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_a_writable_image_is_not_guessed_to_be_raw(raw: Path, fd_of: Callable[..., int]) -> None:
    for source in (raw, fd_of(raw)):
        with pytest.raises(FormatError, match='format="raw"'):
            fdstash.open(source, "r+")
        with fdstash.open(source) as image:
            assert image.format == "raw"
        with fdstash.open(source, "r+", format="raw") as image:
            assert image.mode == "r+"
    assert locked_bytes(raw) == []


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"mode": "w"}, "mode"),
        ({"mode": "rb"}, "mode"),
        ({"mode": ""}, "mode"),
        ({"cache": "fast"}, "cache"),
        ({"cache": None}, "cache"),
        ({"offset": -1}, "offset"),
        ({"size": "5"}, "size"),
        ({"colour": 5}, "colour"),
    ],
)
def test_an_option_that_cannot_be_is_named(
    raw: Path, options: dict[str, object], option: str
) -> None:
    with pytest.raises(OptionError) as caught:
        fdstash.open(raw, format="raw", **options)  # type: ignore[arg-type]
    assert caught.value.option == option


def test_a_format_that_does_not_exist_is_an_error(raw: Path) -> None:
    with pytest.raises((OptionError, UnsupportedFormatError), match="floppy"):
        fdstash.open(raw, format="floppy")


def test_the_format_that_was_named_is_not_guessed(flat: FlatDisk, raw: Path) -> None:
    with fdstash.open(flat.path, format="raw") as image:
        assert image.format == "raw"
        assert read_all(image) == flat.path.read_bytes()
    with pytest.raises(FormatError):
        fdstash.open(raw, format="vmdk")


def test_a_file_that_is_missing_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fdstash.open(tmp_path / "none")
    assert isinstance(caught.value, ImageIOError)
    assert caught.value.filename == str(tmp_path / "none")


def test_a_missing_extent_is_named(flat: FlatDisk) -> None:
    flat.files[3].unlink()
    with pytest.raises(FileNotFoundError) as caught:
        fdstash.open(flat.path, "r+")
    assert caught.value.filename == str(flat.files[3])
    assert all(locked_bytes(path) == [] for path in flat.files if path.exists())


def test_a_short_extent_is_refused(flat: FlatDisk) -> None:
    os.truncate(flat.files[4], 204 * 512 - 1)
    with pytest.raises(FormatError, match=r"disk-d\.bin") as caught:
        fdstash.open(flat.path)
    assert caught.value.file == str(flat.path)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def make_link_to_null(path: Path) -> None:
    path.symlink_to("/dev/null")


ODD_FILES = [
    (Path.mkdir, errno.EISDIR),
    (make_fifo, errno.ENXIO),
    (make_socket, errno.ENXIO),
    (make_link_to_null, errno.EINVAL),
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("make", "code"), ODD_FILES)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_is_no_file_of_bytes_is_refused_without_being_opened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    code: int,
    mode: str,
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name has at most 107 characters
    make(Path("odd"))
    with pytest.raises(ImageIOError) as caught:
        fdstash.open("odd", mode, format="raw")
    assert (caught.value.errno, caught.value.filename) == (code, "odd")


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("make", "code"), ODD_FILES[:3])
def test_an_extent_that_is_no_file_of_bytes_is_refused_without_being_opened(
    flat: FlatDisk, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], code: int
) -> None:
    monkeypatch.chdir(flat.path.parent)
    os.unlink("disk-c.bin")
    make(Path("disk-c.bin"))
    with pytest.raises(ImageIOError) as caught:
        fdstash.open("disk.vmdk", "r+")
    assert (caught.value.errno, caught.value.filename) == (code, "disk-c.bin")


def null(_raw: Path) -> int:
    return os.open("/dev/null", os.O_RDWR)


def folder(raw: Path) -> int:
    return os.open(raw.parent, os.O_RDONLY)


def appending(raw: Path) -> int:
    return os.open(raw, os.O_RDWR | os.O_APPEND)


def by_path_only(raw: Path) -> int:
    return os.open(raw, os.O_PATH)


def pipe(_raw: Path) -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def memory(raw: Path) -> int:
    """Not refused: it is a regular file, wherever it lives."""
    fd = os.memfd_create("disk")
    os.write(fd, raw.read_bytes())
    return fd


@pytest.mark.parametrize("make", [null, folder, appending, by_path_only, pipe])
@pytest.mark.parametrize("how", ["descriptor", "stash"])
def test_a_descriptor_that_cannot_serve_is_refused_and_left_alone(
    raw: Path, stash: FDStash, make: Callable[[Path], int], how: str
) -> None:
    with closing_fd(make(raw)) as fd:
        flags = getfl(fd)
        if how == "stash":
            stash.give(str(raw), os.dup(fd))
        with pytest.raises(ImageIOError) as caught:
            fdstash.open(fd if how == "descriptor" else raw, format="raw", stash=stash)
        assert caught.value.errno in (errno.EBADF, errno.EINVAL, errno.EACCES)
        assert getfl(fd) == flags


class closing_fd(closing[int]):  # noqa: N801 - as contextlib names them
    def __exit__(self, *_: object) -> None:
        os.close(self.thing)  # type: ignore[attr-defined]


def test_a_file_in_memory_serves(raw: Path) -> None:
    with closing_fd(memory(raw)) as fd, fdstash.open(fd, "r+", format="raw") as image:
        image.reopen(mode="r")
        assert read_all(image) == raw.read_bytes()


def test_a_number_that_is_not_open_is_refused(raw: Path) -> None:
    fd = os.open(raw, os.O_RDONLY)
    os.close(fd)
    for number in (fd, -1, 1 << 30):
        with pytest.raises(ImageIOError) as caught:
            fdstash.open(number, format="raw")
        assert caught.value.errno == errno.EBADF
