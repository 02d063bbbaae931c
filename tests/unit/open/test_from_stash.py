"""What `open` looks up in a stash, which keeps all that it held."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, FormatError, ImageIOError, LockError, OptionError, RefusedError
from tests.support.disks import ExtentSpec, FlatDisk, descriptor_text, make_flat, noise, write_file
from tests.support.faultshim import FaultShim
from tests.support.images import read_all
from tests.support.kernel import getfl, same_description
from tests.support.need import need_root
from tests.support.seen import assert_as_kernel_says

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_the_stash_is_asked_by_name_then_text_then_last_component(
    tmp_path: Path, stash: FDStash
) -> None:
    extents = [ExtentSpec("RW", 8, name="sub/../sub/data.bin")]
    disk = make_flat(tmp_path / "d", extents)
    name = str(disk.path.parent / "sub/data.bin")
    by = {
        name: b"N" * 4096,
        "sub/../sub/data.bin": b"T" * 4096,
        "data.bin": b"L" * 4096,
    }
    for number, (key, content) in enumerate(by.items()):
        stash.give(key, os.open(write_file(tmp_path / f"f{number}", content), os.O_RDWR))
    for key, content in by.items():
        with fdstash.open(disk.path, stash=stash) as image:
            assert read_all(image) == content
            assert image.files[1].name == name
        os.close(stash.take(key))
    with fdstash.open(disk.path, stash=stash) as image:  # not held: the host file system
        assert read_all(image) == disk.guest_bytes()
        assert image.files[1].path is not None


def test_the_first_file_is_looked_up_like_every_other(tmp_path: Path, stash: FDStash) -> None:
    missing = str(tmp_path / "missing" / "disk.raw")
    for number, key in enumerate(("disk.raw", missing)):
        content = noise(4096, number)
        stash.give(key, os.open(write_file(tmp_path / f"f{number}", content), os.O_RDWR))
        with fdstash.open(missing, format="raw", stash=stash) as image:
            assert read_all(image) == content
            assert (image.files[0].name, image.files[0].path) == (missing, None)


def test_a_name_that_would_serve_two_files_is_refused(tmp_path: Path, stash: FDStash) -> None:
    extents = [ExtentSpec("RW", 8, name="a/data.bin"), ExtentSpec("RW", 8, name="b/data.bin")]
    disk = make_flat(tmp_path, extents)
    stash.give("data.bin", os.open(tmp_path / "a/data.bin", os.O_RDWR))
    with pytest.raises(RefusedError, match=r"data\.bin") as caught:
        fdstash.open(disk.path, stash=stash)
    assert isinstance(caught.value, PermissionError)
    stash.give("b/data.bin", os.open(tmp_path / "b/data.bin", os.O_RDWR))
    with fdstash.open(disk.path, stash=stash) as image:
        assert read_all(image) == disk.guest_bytes()


def test_the_description_that_fits_mode_and_cache_is_used(raw: Path, stash: FDStash) -> None:
    kinds = [
        ("r", "writeback", os.O_RDONLY),
        ("r+", "writeback", os.O_RDWR),
        ("r", "none", os.O_RDONLY | os.O_DIRECT),
        ("r+", "none", os.O_RDWR | os.O_DIRECT),
    ]
    for _, _, flags in kinds:
        stash.add(str(raw), os.open(raw, flags))
    copies = stash.dup_all(str(raw))
    for (mode, cache, _), copy in zip(kinds, copies, strict=True):
        with fdstash.open(raw, mode, format="raw", cache=cache, stash=stash) as image:
            assert same_description(image.files[0].fd, copy)
            assert_as_kernel_says(image)
    for copy in copies:
        os.close(copy)


def held(stash: FDStash) -> dict[str, list[tuple[str, int]]]:
    """Names, descriptors' files and flags: what a stash must keep."""
    found = {}
    for name in stash.names():
        copies = stash.dup_all(name)
        found[name] = [(os.readlink(f"/proc/self/fd/{fd}"), getfl(fd)) for fd in copies]
        for fd in copies:
            os.close(fd)
    return found


def test_the_stash_keeps_all_that_it_held_when_open_succeeds_and_when_it_fails(
    flat: FlatDisk, stash: FDStash
) -> None:
    for path in flat.files:
        stash.add(str(path), os.open(path, os.O_RDONLY))
        stash.add(str(path), os.open(path, os.O_RDWR))
        stash.give(f"lock:{path}", os.open(path, os.O_RDONLY))
    stash.give("unrelated", os.open(flat.path, os.O_RDONLY))
    before = held(stash)

    def expect(error: type[Exception], **options: object) -> None:
        with pytest.raises(error):
            fdstash.open(flat.path, stash=stash, **options)  # type: ignore[arg-type]
        assert held(stash) == before

    for mode in ("r", "r+"):
        with fdstash.open(flat.path, mode, stash=stash) as image:
            assert read_all(image) == flat.guest_bytes()
            assert held(stash) == before
        assert held(stash) == before
    expect(OptionError, cache="no")
    expect(OptionError, colour="no")
    with fdstash.open(flat.files[4], "r+", format="raw"):
        expect(LockError)
    flat.path.write_text(descriptor_text([*flat.extents, ExtentSpec("RW", 1, name="none.bin")]))
    expect(FileNotFoundError)
    flat.path.write_text("# Disk DescriptorFile\nRW nonsense\n")
    expect(FormatError)


@pytest.mark.preload
def test_what_the_stash_holds_is_not_opened_on_the_host(
    flat: FlatDisk, stash: FDStash, shim: FaultShim
) -> None:
    for path in flat.files:
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_DIRECT):
            stash.add(str(path), os.open(path, flags))
        stash.give(f"lock:{path}", os.open(path, os.O_RDONLY))
    expected = flat.guest_bytes()
    # By path, or by a link below /proc: any open that leads to one of these files.
    shim.refuse(str(flat.path.parent), errno.EIO)
    with fdstash.open(flat.path, stash=stash) as image:
        assert read_all(image) == expected
        for options in ({"mode": "r+"}, {"cache": "none"}, {"mode": "r", "cache": "writeback"}):
            assert set(image.reopen(stash=stash, **options).routes.values()) == {"stash"}
            assert read_all(image) == expected
    assert shim.path_hits == 0
    with pytest.raises(ImageIOError):  # the refusal works: without the stash they are opened
        fdstash.open(flat.path)
    assert shim.path_hits == 1


@pytest.mark.root
def test_a_stash_that_holds_all_serves_where_there_is_no_file_system(flat: FlatDisk) -> None:
    need_root("chroot")
    code = """
import os, sys
import fdstash
from fdstash import FDStash
paths = sys.argv[2:]
stash = FDStash()
for path in paths:
    for flags in os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_DIRECT:
        stash.add(path, os.open(path, flags))
    stash.give("lock:" + path, os.open(path, os.O_RDONLY))
with fdstash.open(paths[0]) as image:
    expected = image.pread(image.size, 0)
os.chroot(sys.argv[1])
os.chdir("/")
assert os.listdir("/") == []
with fdstash.open(paths[0], stash=stash) as image:
    assert image.pread(image.size, 0) == expected
    for options in {"mode": "r+"}, {"cache": "none"}, {"mode": "r", "cache": "writeback"}:
        image.reopen(stash=stash, **options)
        assert image.pread(image.size, 0) == expected
    image.reopen(mode="r+", stash=stash)
    image.pwrite(b"written without a path", 700)
    assert image.pread(22, 700) == b"written without a path"
"""
    empty = flat.path.parent / "empty"
    empty.mkdir()
    command = [sys.executable, "-c", code, str(empty), *map(str, flat.files)]
    subprocess.run(command, check=True, timeout=60)
    assert flat.guest_bytes()[700:722] == b"written without a path"
