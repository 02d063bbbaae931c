"""A descriptor number of the image that other code closed or replaced is seen before the commit.

An exchange into a number that is somebody else's by now would put the image in the place of that
other file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FDStash, Image, ReopenError
from tests.support.disks import make_flat, make_raw, noise
from tests.support.kernel import no_descriptor_leak, open_descriptors, same_description
from tests.support.uncured import bare_exchange

SIZE = 1 << 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_raw(tmp_path, SIZE)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return make_raw(tmp_path, SIZE, name="other", seed=9)


def _close(slot: int, other: Path) -> None:
    os.close(slot)


def _dup2(fd: int, slot: int) -> None:
    os.dup2(fd, slot, inheritable=False)
    os.close(fd)


def _another_file(slot: int, other: Path) -> None:
    _dup2(os.open(other, os.O_RDWR), slot)


def _another_empty_file(slot: int, other: Path) -> None:
    _dup2(os.open(other.with_name("empty"), os.O_RDWR | os.O_CREAT), slot)


def _a_copy(slot: int, other: Path) -> None:
    """The same bytes, the same name, another inode."""
    target = Path(os.readlink(f"/proc/self/fd/{slot}"))
    data = target.read_bytes()
    target.rename(target.with_name("moved"))
    target.write_bytes(data)
    _dup2(os.open(target, os.O_RDWR), slot)


def _a_socket(slot: int, other: Path) -> None:
    _dup2(socket.socket(socket.AF_UNIX).detach(), slot)


def _a_folder(slot: int, other: Path) -> None:
    _dup2(os.open(other.parent, os.O_RDONLY), slot)


def _no_io(slot: int, other: Path) -> None:
    _dup2(os.open(os.readlink(f"/proc/self/fd/{slot}"), os.O_PATH), slot)


THEFTS = [_close, _another_file, _another_empty_file, _a_copy, _a_socket, _a_folder, _no_io]
REFUSALS = (errno.EBADF, errno.ESTALE, errno.EINVAL, errno.EISDIR, errno.ENXIO)
KINDS: list[dict[str, Any]] = [
    {"mode": "r"},
    {"cache": "none"},
    {"mode": "r", "cache": "none"},
    {"path": True},
    {"stash": True, "mode": "r"},
    {"cache": "writethrough"},
]


@contextmanager
def stolen(
    image: Image, index: int, theft: Callable[[int, Path], None], other: Path
) -> Iterator[int]:
    """The number is somebody else's in the block; afterwards the image has it back."""
    slot = image.files[index].fd
    rescue = os.dup(slot)
    theft(slot, other)
    try:
        yield slot
    finally:
        give_back(rescue, slot)


def give_back(rescue: int, slot: int) -> None:
    os.dup2(rescue, slot, inheritable=False)
    os.close(rescue)


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Image]:
    """An image, and its numbers: it cannot know that those taken from it came back."""
    with no_descriptor_leak():
        image = fdstash.open(path, "r+", **options)
        slots = [file.fd for file in image.files]
        try:
            yield image
        finally:
            image.close()
            for slot in set(slots) & open_descriptors().keys():
                os.close(slot)


def what_stands_at(fd: int) -> object:
    try:
        status = os.fstat(fd)
        return status.st_dev, status.st_ino, fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("theft", THEFTS, ids=lambda theft: theft.__name__.strip("_"))
@pytest.mark.parametrize("kind", KINDS, ids="+".join)
def test_a_stolen_slot_is_seen_and_left_to_its_new_owner(
    path: Path, other: Path, kind: dict[str, Any], theft: Callable[[int, Path], None]
) -> None:
    options = dict(kind)
    with opened(path, format="raw") as image:
        with FDStash() as stash:
            if "stash" in options:
                stash.give(str(path), os.open(path, os.O_RDONLY))
                options["stash"] = stash
            if "path" in options:
                options["path"] = str(path)
            before = open_descriptors()
            with stolen(image, 0, theft, other) as slot:
                owner, descriptors = what_stands_at(slot), open_descriptors()
                with pytest.raises(ReopenError) as caught:
                    image.reopen(**options)
                assert open_descriptors() == descriptors
                assert what_stands_at(slot) == owner
            assert open_descriptors().keys() == before.keys()
        error = caught.value
        assert error.rolled_back
        assert error.phase in ("acquire", "prove")
        assert error.file == str(path)
        assert error.errno in REFUSALS
        assert other.read_bytes() == noise(SIZE, 9)
        # It has its number back, and everything works again.
        assert image.pread(SIZE, 0) == noise(SIZE, 1)
        image.reopen(mode="r")


@pytest.mark.parametrize("theft", THEFTS[:2], ids=lambda theft: theft.__name__.strip("_"))
@pytest.mark.parametrize("index", [0, 1, 4])
def test_one_stolen_slot_of_many_stops_the_reopen_of_all(
    tmp_path: Path, other: Path, theft: Callable[[int, Path], None], index: int
) -> None:
    disk = make_flat(tmp_path)
    with opened(disk.path) as image:
        copies = [os.dup(file.fd) for file in image.files]
        slots = [file.fd for file in image.files]
        with stolen(image, index, theft, other) as slot:
            for options in ({"mode": "r"}, {"cache": "none"}, {"path": str(disk.path)}):
                owner = what_stands_at(slot)
                with pytest.raises(ReopenError) as caught:
                    image.reopen(**options)  # type: ignore[arg-type]
                assert caught.value.file == str(disk.files[index])
                assert what_stands_at(slot) == owner
        assert all(map(same_description, copies, slots))
        for copy in copies:
            os.close(copy)
        assert image.pread(image.size, 0) == disk.guest_bytes()


def test_a_theft_between_acquisition_and_commit_is_seen(path: Path, other: Path) -> None:
    """In `prepare`, after the first look."""
    with opened(path, format="raw") as image:
        slot = image.files[0].fd
        rescue = os.dup(slot)
        with pytest.raises(ReopenError) as caught:
            image.reopen(mode="r", prepare=lambda: _another_file(slot, other))
        assert caught.value.rolled_back
        assert os.path.samestat(os.fstat(slot), other.stat())
        give_back(rescue, slot)
        assert image.pread(SIZE, 0) == noise(SIZE, 1)


@pytest.fixture
def victim(path: Path, other: Path) -> Iterator[tuple[Image, int]]:
    with fdstash.open(path, "r+", format="raw") as image:
        slot = image.files[0].fd
        rescue = os.dup(slot)
        _another_file(slot, other)
        yield image, slot
        give_back(rescue, slot)


def test_without_the_look_the_other_file_would_become_the_image(
    victim: tuple[Image, int], path: Path
) -> None:
    """By path the new description is the right one, and goes into a number that is not ours."""
    image, slot = victim
    bare_exchange(image, by_path=True, prove=False)
    assert os.path.samestat(os.fstat(slot), path.stat())
    os.pwrite(slot, b"what the owner of this number writes into its own file", 0)
    assert path.read_bytes().startswith(b"what the owner")
