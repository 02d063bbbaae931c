"""Fuzzes the flat VMDK driver with the bytes of a descriptor.

python tests/fuzz/fuzz_vmdk_descriptor.py [corpus folder] [-max_total_time=SECONDS]
"""

from __future__ import annotations

import errno
import json
import posixpath
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from fdstash.errors import FormatError, ImageIOError, RefusedError, os_error
from fdstash.formats.vmdk import descriptor
from fdstash.formats.vmdk.disk import Vmdk
from tests.fuzz.harness import run
from tests.support.children import MemoryChild, MemoryOpener

ALLOWED = (FormatError, RefusedError, ImageIOError)


class Folder(MemoryOpener):
    """Refuses what leaves the folder, misses what has an `x`, knows spellings of one name."""

    def __init__(self) -> None:
        super().__init__(size=1 << 40, same=posixpath.normpath)

    def open(self, text: str, /, *, writable: bool) -> MemoryChild:
        if text.startswith("/") or ".." in text.split("/"):
            raise RefusedError(errno.EACCES, "not beneath the folder", text)
        if "x" in text:
            raise os_error(errno.ENOENT, text)
        return super().open(text, writable=writable)


def one_input(data: bytes) -> None:
    file = MemoryChild(data, "disk.vmdk")
    try:
        image = Vmdk.open(file, Folder(), writable=False, options={})
    except ALLOWED as error:
        assert str(error)
        return
    check_segments(image)
    json.dumps(image.info())
    check_text(data)
    check_first_write(image, file)


def check_segments(image: Vmdk) -> None:
    files = {child.index: child for child in image.files}
    assert len(files) == len(image.files)
    at = 0
    for segment in image.segments():
        assert segment.start == at
        assert segment.length > 0
        assert segment.file in files
        assert segment.file_offset + segment.length <= files[segment.file].size or segment.kind
        at += segment.length
    assert at == image.size > 0


def check_text(data: bytes) -> None:
    found = descriptor.parse(data, "disk.vmdk")
    try:
        text = descriptor.build(found)
    except FormatError:
        return
    assert descriptor.parse(text, "disk.vmdk") == found


def check_first_write(image: Vmdk, file: MemoryChild) -> None:
    try:
        image.can_write()
    except FormatError:
        return
    segments = image.segments()
    before = bytes(file.data)
    image.before_first_write()
    assert len(file.data) == len(before)
    image.revalidate(lambda child, n, offset: child.pread(n, offset))
    again = Vmdk.open(file, Folder(), writable=True, options={})
    assert again.segments() == segments
    assert again.info() == image.info()


if __name__ == "__main__":
    run(one_input, "vmdk_descriptor")
