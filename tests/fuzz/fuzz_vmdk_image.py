"""Fuzzes whole images of sparse extents: opened, read, written to, reopened, closed.

The files are in memory, and are found in a stash. Whatever they hold, only errors of fdstash
come out.

python tests/fuzz/fuzz_vmdk_image.py [corpus folder] [-max_total_time=SECONDS]
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import fdstash
from fdstash import FDStash, Image
from tests.fuzz.harness import run
from tests.support.grain_files import descriptor

WRITABLE, TEXT, PARENT = 1, 2, 4
#: Bits 4 and 5 of the flags: what the text says of the files, and where they say how long they are.
TYPES = (("SPARSE", "<Q", 12), ("VMFSSPARSE", "<I", 12), ("SESPARSE", "<Q", 16), ("FLAT", "", 0))
PARENT_CID = 0x0000000B
MOST_STEPS = 16
LENGTHS = (0, 1, 511, 512, 4096, 5000, 65536, 1 << 20)
#: A write of one byte to a larger grain is no finding, and takes its time.
LARGEST_WRITTEN = 1 << 20

_HEAD = struct.Struct("<BBHHH")


class Input(NamedTuple):
    """What the bytes of an input say."""

    flags: int
    steps: bytes
    files: tuple[bytes, bytes]
    sectors: tuple[int, int]  #: which zeros fill each file up to

    @classmethod
    def of(cls, data: bytes) -> Input:
        flags, count, cut, *sectors = _HEAD.unpack(data[: _HEAD.size])
        at = _HEAD.size + 4 * (count % (MOST_STEPS + 1))
        rest = data[at:]
        return cls(
            flags,
            data[_HEAD.size : at],
            (rest[:cut] if cut else rest, rest[cut:] if cut else b""),
            (sectors[0], sectors[1]),
        )

    def encode(self) -> bytes:
        cut = len(self.files[0]) if self.files[1] else 0
        head = _HEAD.pack(self.flags, len(self.steps) // 4, cut, *self.sectors)
        return head + self.steps + b"".join(self.files)

    def text(self) -> bytes:
        """The descriptor where there is one of its own."""
        kind, form, place = TYPES[self.flags >> 4 & 3]
        count = 1 if self.flags & PARENT or not self.files[1] else 2
        lines = []
        for number in range(count):
            data, sectors = (
                self.files[number],
                self.sectors[number] or len(self.files[number]) // 512,
            )
            if form:
                head = data[place : place + struct.calcsize(form)]
                sectors = struct.unpack(form, head.ljust(struct.calcsize(form), b"\0"))[0]
            lines.append(f'RW {sectors} {kind} "{number}.bin"' + (" 0" if not form else ""))
        if self.flags & PARENT:
            return descriptor(*lines, parent_cid=PARENT_CID, hint="1.bin").encode()
        return descriptor(*lines).encode()


def in_memory(data: bytes, sectors: int = 0) -> int:
    fd = os.memfd_create("fuzz")
    os.write(fd, data)
    os.truncate(fd, max(len(data), sectors * 512))
    return fd


@contextlib.contextmanager
def files_of(found: Input) -> Iterator[FDStash]:
    with FDStash() as stash:
        for number, (data, sectors) in enumerate(zip(found.files, found.sectors, strict=True)):
            stash.give(f"{number}.bin", in_memory(data, sectors))
        if found.flags & TEXT:
            stash.give("disk.vmdk", in_memory(found.text()))
        yield stash


def one_input(data: bytes) -> None:
    if len(data) < _HEAD.size:
        return
    found = Input.of(data)
    with files_of(found) as stash:
        name = "disk.vmdk" if found.flags & TEXT else "0.bin"
        for mode in ("r+" if found.flags & WRITABLE else "r", "r"):
            with contextlib.suppress(fdstash.Error), opened(stash, name, mode) as image:
                look(image)
                for at in range(0, len(found.steps) - 3, 4):
                    with contextlib.suppress(fdstash.Error):
                        step(image, found.steps[at : at + 4])
                look(image)


def opened(stash: FDStash, name: str, mode: str) -> Image:
    """The image; every file is found in the stash, or not at all."""
    fd = stash.dup(name)
    try:
        return fdstash.open(fd, mode, format="vmdk", stash=stash, lock=False)
    finally:
        os.close(fd)


def look(image: Image) -> None:
    at = 0
    with contextlib.suppress(fdstash.FormatError):
        for extent in islice(image.extents(), 50):
            assert extent.offset == at
            assert extent.length > 0
            at += extent.length
            assert at <= image.size
    assert image.format_info
    assert image.limits
    with contextlib.suppress(fdstash.Error):
        assert len(image.pread(4096, 0)) == min(4096, image.size)
    if image.backing is not None:
        with contextlib.suppress(fdstash.Error):
            image.backing.pread(4096, 0)


def step(image: Image, what: bytes) -> None:
    n = LENGTHS[what[1] % len(LENGTHS)]
    place = what[2] << 8 | what[3]
    offset = place * 512 if what[0] & 0x80 else image.size * place >> 16
    action = what[0] % 8
    if action < 2:
        got = image.pread(n, offset)
        assert len(got) == max(0, min(n, image.size - offset))
    elif action == 7:
        image.reopen(mode="r" if image.mode == "r+" else "r+")
    elif largest_grain(image) <= LARGEST_WRITTEN:
        change(image, action, n, offset)


def change(image: Image, action: int, n: int, offset: int) -> None:
    if action == 2:
        image.pwrite(bytes([n % 251]) * n, offset)
    elif action in (3, 4):
        image.zero(n, offset, unmap=action == 4)
    elif action == 5:
        image.trim(n, offset)
    else:
        image.flush()


def largest_grain(image: Image) -> int:
    extents = image.format_info["extents"]
    assert isinstance(extents, list)
    return max(extent.get("cluster-size", 0) for extent in extents)


if __name__ == "__main__":
    run(one_input, "vmdk_image")
