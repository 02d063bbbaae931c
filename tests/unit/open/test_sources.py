"""What `open` opens: paths and descriptors, in every mode."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash
from tests.support.disks import FlatDisk, make_flat, noise, write_file
from tests.support.images import CACHES, SIZE, read_all
from tests.support.kernel import getfl, same_description
from tests.support.seen import assert_as_kernel_says

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_a_path_is_text_or_path_like(raw: Path, kind: Callable[[Path], str]) -> None:
    with fdstash.open(kind(raw), format="raw") as image:
        assert read_all(image) == raw.read_bytes()
        assert image.name == image.files[0].path == str(raw)


@pytest.mark.parametrize("name", ["ü/日本 disk.raw", "bad\udcff.raw", 'quote".raw'])
def test_any_file_name_serves(tmp_path: Path, name: str) -> None:
    path = write_file(tmp_path / name, noise(SIZE))
    with fdstash.open(path, "r+", format="raw") as image:
        assert image.files[0].name == str(path)
        assert read_all(image) == noise(SIZE)
        image.reopen(mode="r")
        image.reopen(path=path)


def test_a_relative_path_is_kept_as_given(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(raw.parent)
    with fdstash.open("./disk.raw", format="raw") as image:
        assert image.files[0].name == image.files[0].path == "./disk.raw"


def test_a_relative_descriptor_names_its_extents_relative_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    disk = make_flat(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    with fdstash.open("folder/disk.vmdk") as image:
        assert [f.name for f in image.files[1:3]] == ["folder/disk-a.bin", "folder/disk-b.bin"]
        assert read_all(image) == disk.guest_bytes()
    monkeypatch.chdir("folder")
    with fdstash.open("disk.vmdk") as image:
        assert [f.name for f in image.files[1:3]] == ["disk-a.bin", "disk-b.bin"]
        assert read_all(image) == disk.guest_bytes()


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("cache", CACHES)
def test_every_file_is_opened_with_the_flags_of_mode_and_cache(
    flat: FlatDisk, mode: str, cache: str
) -> None:
    with fdstash.open(flat.path, mode, cache=cache) as image:
        assert (image.mode, image.cache, image.format) == (mode, cache, "vmdk")
        assert_as_kernel_says(image)
        assert {f.mode for f in image.files} == {mode}
        assert read_all(image) == flat.guest_bytes()


def test_every_slot_is_close_on_exec_and_above_stderr(flat: FlatDisk) -> None:
    with fdstash.open(flat.path) as image:
        assert all(f.fd > 2 and not os.get_inheritable(f.fd) for f in image.files)


def test_an_image_takes_a_dup_of_a_descriptor_and_leaves_the_callers_alone(
    raw: Path, fd_of: Callable[..., int]
) -> None:
    fd = fd_of(raw)
    with fdstash.open(fd, "r+", format="raw") as image:
        assert image.files[0].fd != fd
        assert same_description(fd, image.files[0].fd)
        assert image.files[0].path is None
        assert read_all(image) == raw.read_bytes()
        image.pwrite(b"new", 5)
    assert os.pread(fd, 3, 5) == b"new"


def test_an_image_lives_on_when_the_callers_descriptor_is_closed(raw: Path) -> None:
    fd = os.open(raw, os.O_RDWR)
    with fdstash.open(fd, "r+", format="raw") as image:
        os.close(fd)
        image.pwrite(b"new", 5)
        image.reopen(mode="r", cache="none")
        assert image.pread(3, 5) == b"new"


def test_a_descriptor_of_another_mode_serves_by_a_description_of_its_own(
    raw: Path, fd_of: Callable[..., int]
) -> None:
    fd = fd_of(raw, os.O_RDONLY)
    with fdstash.open(fd, "r+", format="raw", cache="none") as image:
        assert not same_description(fd, image.files[0].fd)
        assert_as_kernel_says(image)
        image.pwrite(b"new", 5)
    assert getfl(fd) & (os.O_ACCMODE | os.O_DIRECT) == os.O_RDONLY


def test_an_unlinked_file_serves_and_can_be_reopened(raw: Path, fd_of: Callable[..., int]) -> None:
    fd = fd_of(raw)
    content = raw.read_bytes()
    raw.unlink()
    with fdstash.open(fd, "r", format="raw", name="gone.raw") as image:
        assert image.files[0].name == "gone.raw"
        for options in ({"mode": "r+"}, {"cache": "none"}, {"mode": "r", "cache": "writeback"}):
            image.reopen(**options)
            assert_as_kernel_says(image)
            assert read_all(image) == content


def test_a_descriptor_with_a_name_looks_beneath_the_folder_of_that_name(
    flat: FlatDisk, fd_of: Callable[..., int]
) -> None:
    with fdstash.open(fd_of(flat.path), name=str(flat.path)) as image:
        assert read_all(image) == flat.guest_bytes()
        assert [f.name for f in image.files] == [str(f) for f in flat.files]
        assert [f.path for f in image.files] == [None, *map(str, flat.files[1:])]


def test_a_descriptor_without_a_name_finds_its_extents_only_in_the_stash(
    flat: FlatDisk,
    fd_of: Callable[..., int],
    stash: FDStash,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(flat.path.parent)  # where they would be found by chance
    fd = fd_of(flat.path)
    with pytest.raises(FileNotFoundError, match="name="):
        fdstash.open(fd)
    for path in flat.files[1:]:
        with pytest.raises(FileNotFoundError) as caught:
            fdstash.open(fd, stash=stash)
        assert caught.value.filename == path.name
        stash.give(path.name, os.open(path, os.O_RDONLY))
    with fdstash.open(fd, stash=stash) as image:
        assert read_all(image) == flat.guest_bytes()
        assert [f.name for f in image.files[1:]] == [p.name for p in flat.files[1:]]


def test_probe_says_what_open_would_find(flat: FlatDisk, raw: Path) -> None:
    assert fdstash.probe(flat.path) == "vmdk"
    assert fdstash.probe(str(raw)) == "raw"
    with pytest.raises(FileNotFoundError):
        fdstash.probe(raw.parent / "none")
