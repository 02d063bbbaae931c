"""An image as a file object."""

from __future__ import annotations

import errno
import io
import os

import pytest

import fdstash
from fdstash import ClosedError, Image
from tests.support.disks import FlatDisk, noise
from tests.support.refusals import failed_with

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_a_file_object_reads_writes_and_seeks(image: Image) -> None:
    expected = image.pread(image.size, 0)
    file = image.as_file()
    assert isinstance(file, io.RawIOBase)
    assert (file.readable(), file.writable(), file.seekable()) == (True, True, True)
    assert file.read(10) == expected[:10]
    assert file.tell() == 10
    assert file.seek(-5, os.SEEK_END) == image.size - 5
    assert file.read(100) == expected[-5:]
    assert file.read(100) == b""
    assert file.seek(5) == 5
    assert file.seek(5, os.SEEK_CUR) == 10
    buffer = bytearray(100)
    assert file.readinto(buffer) == 100
    assert bytes(buffer) == expected[10:110]
    assert file.write(b"hello") == 5
    assert image.pread(5, 110) == b"hello"
    file.seek(0)
    assert file.readall()[110:115] == b"hello"
    file.flush()
    for call in (lambda: file.seek(-1), lambda: file.seek(0, 9), lambda: file.seek(-1, 0)):
        with pytest.raises(ValueError, match=r"negative|whence"):
            call()
    with pytest.raises((OSError, io.UnsupportedOperation)):
        file.truncate(10)


def test_a_file_object_writes_short_at_the_end_and_fails_beyond_it(image: Image) -> None:
    file = image.as_file()
    file.seek(image.size - 3)
    assert file.write(b"abcdef") == 3
    assert image.pread(10, image.size - 3) == b"abc"
    assert failed_with(lambda: file.write(b"d")) == errno.ENOSPC
    assert file.seek(image.size + 100) == image.size + 100
    assert file.read(5) == b""


def test_file_objects_have_a_position_each_and_leave_the_image_open(image: Image) -> None:
    one, two = image.as_file(), image.as_file()
    one.seek(100)
    assert two.tell() == 0
    one.close()
    assert one.closed
    for call in (one.tell, one.readable, lambda: one.seek(0), lambda: one.read(1), one.writable):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert len(two.read(5)) == 5
    with image.as_file() as three:
        three.write(b"x")
    assert not image.closed


def test_a_file_object_follows_the_mode_of_the_image(image: Image) -> None:
    file = image.as_file()
    image.reopen(mode="r")
    assert not file.writable()
    assert failed_with(lambda: file.write(b"x")) == errno.EBADF
    image.reopen(mode="r+")
    assert file.writable()
    file.write(b"x")


def test_buffered_reader_and_buffered_random_work_on_a_file_object(image: Image) -> None:
    expected = bytearray(image.pread(image.size, 0))
    with io.BufferedReader(image.as_file(), 4096) as reader:
        assert reader.read(10_000) == bytes(expected[:10_000])
        reader.seek(37 * 512 - 10)
        assert reader.read(20) == bytes(expected[37 * 512 - 10 : 37 * 512 + 10])
        assert reader.peek(1)[:1] == bytes(expected[37 * 512 + 10 : 37 * 512 + 11])
        reader.seek(0, os.SEEK_END)
        assert reader.read() == b""
    with io.BufferedRandom(image.as_file(), 4096) as both:
        for number, offset in enumerate((0, 5, 4090, 20_000, image.size - 100)):
            data = noise(100, number)
            both.seek(offset)
            both.write(data)
            expected[offset : offset + 100] = data
        both.seek(0)
        assert both.read() == bytes(expected)
    assert image.pread(image.size, 0) == bytes(expected)


def test_a_file_object_after_the_image_was_closed_says_so(flat: FlatDisk) -> None:
    image = fdstash.open(flat.path, "r+")
    file = image.as_file()
    buffered = io.BufferedReader(image.as_file())
    image.close()
    for call in (lambda: file.read(1), lambda: file.write(b"x"), lambda: buffered.read(1)):
        with pytest.raises(ClosedError):
            call()
    file.close()
    buffered.close()
