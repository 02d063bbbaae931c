"""A request on an image of 500 extents runs in C: as much Python as on one, and no lock of it.

That the interpreter's lock is given up, the tests show that pause a thread in the kernel; here it
is that nothing in Python is done for each extent.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import Image
from tests.support.disks import ExtentSpec, FlatDisk, make_flat, noise
from tests.support.faultshim import PAUSE, FaultShim
from tests.support.traced import traced_between_marks

SECTORS = 3
COUNT = 500


@pytest.fixture
def many(tmp_path: Path) -> FlatDisk:
    """Extents of 1536 bytes, in turn in two files: no two neighbours lie side by side."""
    extents = [
        ExtentSpec("RW", SECTORS, name=f"part-{number % 2}.bin", start=number * SECTORS)
        for number in range(COUNT)
    ]
    return make_flat(tmp_path / "many", extents)


@pytest.fixture
def one(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path / "one", [ExtentSpec("RW", SECTORS * COUNT, name="whole.bin")])


def python_calls(request: Callable[[], object]) -> list[str]:
    """Functions entered meanwhile, of Python and of C."""
    seen: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            seen.append(frame.f_code.co_qualname)
        elif event == "c_call":
            seen.append(getattr(argument, "__qualname__", repr(argument)))

    request()  # what is done once is done
    sys.setprofile(note)
    try:
        request()
    finally:
        sys.setprofile(None)
    return seen


def requests(image: Image) -> dict[str, Callable[[], object]]:
    size = image.size
    data, buffer = noise(size), bytearray(size)
    parts = [memoryview(buffer)[: size // 2], memoryview(buffer)[size // 2 :]]
    return {
        "pread": lambda: image.pread(size, 0),
        "preadv": lambda: image.preadv(parts, 0),
        "pwrite": lambda: image.pwrite(data, 0),
        "pwritev": lambda: image.pwritev(parts, 0),
        "zero": lambda: image.zero(size, 0),
        "trim": lambda: image.trim(size, 0),
        "flush": image.flush,
    }


def test_a_request_on_many_extents_enters_as_much_python_as_on_one(
    many: FlatDisk, one: FlatDisk
) -> None:
    with fdstash.open(many.path, "r+") as image, fdstash.open(one.path, "r+") as other:
        for (name, on_many), on_one in zip(
            requests(image).items(), requests(other).values(), strict=True
        ):
            seen = python_calls(on_many)
            assert seen == python_calls(on_one), name
            assert len(seen) < 50, seen


@contextmanager
def paused(shim: FaultShim, call_class: str, request: Callable[[], object]) -> Iterator[None]:
    """The request stands in the kernel, on a thread of its own, while the block runs."""
    failed: list[BaseException] = []

    def work() -> None:
        shim.arm(call_class, COUNT // 2 if call_class == "pread" else 0, PAUSE)
        try:
            request()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)
        shim.disarm()

    thread = threading.Thread(target=work)
    thread.start()
    shim.wait_paused()
    yield
    shim.resume()
    thread.join(10)
    assert not thread.is_alive()
    assert not failed


@pytest.mark.preload
@pytest.mark.parametrize(
    ("call_class", "request_"),
    [
        ("pread", lambda image: image.pread(image.size, 0)),
        ("pwrite", lambda image: image.pwrite(bytes(image.size), 0)),
        ("fdatasync", lambda image: image.flush()),
        ("fallocate", lambda image: image.zero(image.size, 0)),
    ],
)
def test_python_goes_on_while_a_request_is_in_the_kernel(
    one: FlatDisk, many: FlatDisk, shim: FaultShim, call_class: str, request_: Callable[..., object]
) -> None:
    disk = many if call_class == "pread" else one
    with fdstash.open(disk.path, "r+") as image:
        image.pwrite(b"1", 0)
        with paused(shim, call_class, lambda: request_(image)):
            start = time.monotonic()
            total = sum(range(100_000))
            assert image.pread(512, 512) is not None
            assert time.monotonic() - start < 5
            assert total == 4_999_950_000


def test_bytes_of_many_extents_are_right(many: FlatDisk) -> None:
    expected = bytearray(many.guest_bytes())
    with fdstash.open(many.path, "r+") as image:
        assert image.pread(image.size, 0) == expected
        data = noise(image.size - 2000, 9)
        image.pwrite(data, 777)
        expected[777 : 777 + len(data)] = data
        image.reopen(mode="r", cache="none")
        assert image.pread(image.size, 0) == expected
    assert many.guest_bytes() == expected


PROGRAM = """
import os, sys
import fdstash
with fdstash.open(sys.argv[1], "r+") as image:
    image.pwrite(b"1", 0)
    os.access("/mark", os.F_OK)
    image.pread(image.size, 0)
    os.access("/mark", os.F_OK)
"""


@pytest.mark.slow
def test_a_read_of_many_extents_is_one_read_of_each(many: FlatDisk, tmp_path: Path) -> None:
    lines = traced_between_marks(tmp_path / "strace", PROGRAM, [str(many.path)])
    calls = [line.split("(")[0] for line in lines]
    others = {"brk", "mmap", "munmap", "mremap", "madvise", "futex", "clock_gettime"}
    assert [call for call in calls if call not in others] == ["pread64"] * COUNT
