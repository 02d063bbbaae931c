"""Attacks on the paths between the open and the reopen."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, ReopenError
from tests.support.disks import FlatDisk, make_flat, noise
from tests.support.kernel import same_description
from tests.support.seen import WRITER_BYTES, check_served, locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def _rename(path: Path) -> None:
    path.rename(path.with_name("moved"))


def _unlink(path: Path) -> None:
    path.unlink()


def _another_file(path: Path) -> None:
    """Of the same size, with other bytes."""
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(noise(size, 77))


def _a_copy(path: Path) -> None:
    """Moved over it, as editors do."""
    fresh = path.with_name("fresh")
    shutil.copyfile(path, fresh)
    fresh.rename(path)


def _link_to_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(noise(path.stat().st_size, 77))
    path.unlink()
    path.symlink_to(other.name)


def _link_to_nowhere(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("nowhere")


def _link_to_itself(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.name)


def _link_to_a_device(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.mkdir()


def _fifo(path: Path) -> None:
    path.rename(path.with_name("moved"))
    os.mkfifo(path)


def _socket(path: Path) -> None:
    path.rename(path.with_name("moved"))
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_PATH)
        server.bind(f"/proc/self/fd/{here}/{path.name}")  # the whole path may be too long
        os.close(here)


def _empty(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.touch()


GONE = {
    _rename: {errno.ENOENT},
    _unlink: {errno.ENOENT},
    _another_file: {errno.ESTALE},
    _a_copy: {errno.ESTALE},
    _link_to_another: {errno.ESTALE},
    _link_to_nowhere: {errno.ENOENT},
    _link_to_itself: {errno.ELOOP},
    _link_to_a_device: {errno.EINVAL},
    _folder: {errno.EISDIR},
    _fifo: {errno.ENXIO},
    _socket: {errno.ENXIO},
    _empty: {errno.ESTALE},
}
"""Attacks after which the path leads to another file or to none, and what a reopen says."""


def _link_to_itself_moved(path: Path) -> None:
    """A symbolic link that leads to the very same file."""
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def _hard_link(path: Path) -> None:
    other = path.with_name("moved")
    os.link(path, other)
    path.unlink()
    os.link(other, path)


STILL_THERE = [_link_to_itself_moved, _hard_link]


def name_of(attack: Callable[[Path], None]) -> str:
    return attack.__name__.strip("_")


@pytest.mark.parametrize("attack", [*GONE, *STILL_THERE], ids=name_of)
@pytest.mark.parametrize("victim", [0, 1, 3, 4])
def test_every_route_but_the_path_works_whatever_became_of_it(
    disk: FlatDisk, attack: Callable[[Path], None], victim: int
) -> None:
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        inodes = [file.inode for file in image.files]
        attack(disk.files[victim])
        for options in (
            {"cache": "none"},
            {"mode": "r"},
            {"mode": "r+", "cache": "writeback"},
            {"cache": "directsync"},
            {"mode": "r", "cache": "writethrough"},
            {"mode": "r+"},
        ):
            routes = set(image.reopen(**options).routes.values())  # type: ignore[arg-type]
            assert routes <= {"setfl", "proc", "keep"}
            assert [file.inode for file in image.files] == inodes
            check_served(image, model)
        assert [locked_bytes(file.fd) for file in image.files] == [WRITER_BYTES] * 5


@pytest.mark.parametrize("attack", GONE, ids=name_of)
@pytest.mark.parametrize("victim", [0, 1, 3, 4])
def test_the_path_is_refused_where_it_leads_elsewhere(
    disk: FlatDisk, attack: Callable[[Path], None], victim: int
) -> None:
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        copies = [os.dup(file.fd) for file in image.files]
        attack(disk.files[victim])
        for options in ({}, {"mode": "r"}, {"cache": "none"}):
            with pytest.raises(ReopenError) as caught:
                image.reopen(path=disk.path, **options)  # type: ignore[arg-type]
            assert caught.value.errno in GONE[attack]
            assert (caught.value.phase, caught.value.file) == ("acquire", str(disk.files[victim]))
            assert caught.value.rolled_back
            assert all(map(same_description, copies, (file.fd for file in image.files)))
            assert (image.mode, image.cache) == ("r+", "writeback")
            check_served(image, model)
        for copy in copies:
            os.close(copy)


@pytest.mark.parametrize("attack", STILL_THERE, ids=name_of)
@pytest.mark.parametrize("victim", [0, 3])
def test_the_path_is_taken_where_it_leads_to_the_same_file(
    disk: FlatDisk, attack: Callable[[Path], None], victim: int
) -> None:
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        inodes = [file.inode for file in image.files]
        attack(disk.files[victim])
        image.reopen(path=disk.path, cache="none")
        assert [file.inode for file in image.files] == inodes
        check_served(image, model)


@pytest.mark.parametrize("attack", [*GONE, *STILL_THERE], ids=name_of)
def test_the_folder_itself_may_go_away(tmp_path: Path, attack: Callable[[Path], None]) -> None:
    """All paths at once: the folder is moved, and something else stands there."""
    home = tmp_path / "home"
    home.mkdir()
    disk = make_flat(home)
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        home.rename(tmp_path / "elsewhere")
        home.mkdir()
        for file in disk.files:
            shutil.copyfile(tmp_path / "elsewhere" / file.name, file)
        attack(disk.files[2])
        for options in ({"mode": "r"}, {"mode": "r+", "cache": "none"}):
            image.reopen(**options)  # type: ignore[arg-type]
            check_served(image, model)
        with pytest.raises(ReopenError):
            image.reopen(path=disk.path)
        check_served(image, model)


def test_an_image_that_lost_all_its_paths_can_be_handed_on(disk: FlatDisk, tmp_path: Path) -> None:
    with fdstash.open(disk.path, "r+") as image, FDStash() as stash:
        model = image.pread(image.size, 0)
        for file in disk.files:
            file.unlink()
        image.reopen(mode="r")
        image.extract_fds(stash)
        with fdstash.open(disk.path, "r", stash=stash) as second:
            assert second.pread(second.size, 0) == model
            second.reopen(cache="none")
            assert second.pread(second.size, 0) == model
