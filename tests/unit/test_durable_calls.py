"""Writethrough, directsync and FUA by the system calls that they make: RWF_DSYNC on each write.

That the bytes reach the device, tests/unit/test_hostfile.py looks at. Here it is that no sync of
the whole file does it, and that a write that need not be durable asks for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.disks import ExtentSpec, make_flat, make_raw
from tests.support.traced import traced_between_marks

# Under a sanitizer the traced program would want a runtime that strace does not bear.
pytestmark = [pytest.mark.root, pytest.mark.slow]

WRITES = ("pwrite64", "pwritev", "pwritev2")
SYNCS = ("fsync", "fdatasync", "sync_file_range", "sync", "syncfs")

PROGRAM = """
import os, sys
import fdstash

path, format, cache, before, request = sys.argv[1:]
with fdstash.open(path, "r+", format=format, cache=before) as image:
    image.pwrite(b"1", 0)  # the CID of a VMDK is written now and not later
    image.flush()
    image.reopen(cache=cache)
    os.access("/mark", os.F_OK)
    eval(request)
    os.access("/mark", os.F_OK)
"""


def calls(path: Path, cache: str, request: str, before: str = "writeback") -> list[str]:
    """The writes, syncs and zeroings between the marks, as strace writes them."""
    arguments = [str(path), path.suffix[1:], cache, before, request]
    only = [*WRITES, *SYNCS, "fallocate"]
    lines = traced_between_marks(path.with_name("strace"), PROGRAM, arguments, only)
    return [line for line in lines if line.split("(")[0] in only]


def named(found: list[str], names: tuple[str, ...]) -> list[str]:
    return [line for line in found if line.split("(")[0] in names]


def assert_durable_by_itself(found: list[str]) -> None:
    """Every write bears RWF_DSYNC, and no sync follows."""
    writes = named(found, WRITES)
    assert writes
    assert all("RWF_DSYNC" in line for line in writes), found
    assert not named(found, SYNCS)


@pytest.fixture
def raw(ext4_mount: Callable[..., Path]) -> Path:
    return make_raw(ext4_mount(), 1 << 20)


REQUESTS = {
    "some bytes": "image.pwrite(b'x' * 700, 9)",
    "a page": "image.pwrite(b'x' * 4096, 8192)",
    "some buffers": "image.pwritev([b'x' * 5, b'y' * 4096, b'z' * 700], 3)",
    "zeros in a page": "image.zero(100, 5)",
}


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("cache", ["writethrough", "directsync"])
def test_a_write_through_is_durable_by_itself(raw: Path, cache: str, request_: str) -> None:
    assert_durable_by_itself(calls(raw, cache, REQUESTS[request_]))


@pytest.mark.parametrize("request_", ["some bytes", "a page", "some buffers"])
@pytest.mark.parametrize("cache", ["writeback", "none", "unsafe"])
def test_a_write_with_fua_is_durable_by_itself(raw: Path, cache: str, request_: str) -> None:
    fua = REQUESTS[request_].removesuffix(")") + ", fua=True)"
    assert_durable_by_itself(calls(raw, cache, fua))


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("cache", ["writeback", "none", "unsafe"])
def test_a_write_that_need_not_be_durable_asks_for_nothing(
    raw: Path, cache: str, request_: str
) -> None:
    found = calls(raw, cache, REQUESTS[request_])
    assert named(found, WRITES)
    assert not any("DSYNC" in line for line in found), found
    assert not named(found, SYNCS)


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("cache", ["writethrough", "directsync"])
def test_zeroing_through_is_followed_by_a_sync(raw: Path, cache: str, *, unmap: bool) -> None:
    """The call that zeroes whole pages knows no RWF_DSYNC."""
    found = calls(raw, cache, f"image.zero(65536, 8192, unmap={unmap})")
    assert [line.split("(")[0] for line in found] == ["fallocate", "fdatasync"], found


def test_zeroing_with_fua_is_followed_by_a_sync(raw: Path) -> None:
    found = calls(raw, "writeback", "image.zero(65536, 8192, fua=True)")
    assert [line.split("(")[0] for line in found] == ["fallocate", "fdatasync"], found
    found = calls(raw, "writeback", "image.zero(65536, 8192)")
    assert [line.split("(")[0] for line in found] == ["fallocate"], found


def test_a_write_through_is_durable_in_every_extent_that_it_meets(
    ext4_mount: Callable[..., Path],
) -> None:
    disk = make_flat(
        ext4_mount(),
        (ExtentSpec("RW", 16, name="a.bin"), ExtentSpec("RW", 16, name="b.bin", start=1)),
    )
    found = calls(disk.path, "writethrough", "image.pwrite(b'x' * 1024, 15 * 512)")
    assert_durable_by_itself(found)
    assert len({re.findall(r"\((\d+),", line)[0] for line in found}) == 2


def test_a_flush_syncs_what_was_written_and_nothing_else(
    ext4_mount: Callable[..., Path],
) -> None:
    disk = make_flat(
        ext4_mount(),
        (ExtentSpec("RW", 16, name="a.bin"), ExtentSpec("RW", 16, name="b.bin")),
    )
    wanted = "(image.pwrite(b'x', 16 * 512), image.flush(), image.flush())"
    assert len(named(calls(disk.path, "writeback", wanted), SYNCS)) == 1
    assert not named(calls(disk.path, "unsafe", wanted), SYNCS)
