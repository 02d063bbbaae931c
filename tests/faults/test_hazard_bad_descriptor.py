"""A descriptor that cannot serve an image is refused wherever it comes in.

With O_APPEND `pwrite` ignores its offset; O_PATH can neither read nor write; anything but a
regular file or a block device has no bytes at offsets. Seen with a core that looks for O_PATH
alone: every row of `append` and `append-read` fails.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, Image, ImageIOError, ReopenError
from tests.support.disks import make_flat, make_raw, noise
from tests.support.kernel import access_mode, getfl, is_direct, open_descriptors
from tests.support.need import need_root
from tests.support.sandbox import run_as
from tests.support.seen import assert_as_kernel_says

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

SIZE = 1 << 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_raw(tmp_path, SIZE)


def _pipe(path: Path) -> int:
    read_end, write_end = os.pipe()
    os.close(write_end)
    return read_end


def _socket(path: Path) -> int:
    return socket.socket(socket.AF_UNIX).detach()


def _fifo(path: Path) -> int:
    name = path.with_name("fifo")
    os.mkfifo(name)
    return os.open(name, os.O_RDWR)


BAD: dict[str, tuple[Callable[[Path], int], int]] = {
    "append": (lambda p: os.open(p, os.O_RDWR | os.O_APPEND), errno.EBADF),
    "append-direct": (lambda p: os.open(p, os.O_RDWR | os.O_APPEND | os.O_DIRECT), errno.EBADF),
    "append-read": (lambda p: os.open(p, os.O_RDONLY | os.O_APPEND), errno.EBADF),
    "path": (lambda p: os.open(p, os.O_PATH), errno.EBADF),
    "folder": (lambda p: os.open(p.parent, os.O_RDONLY), errno.EINVAL),
    "folder-path": (lambda p: os.open(p.parent, os.O_PATH), errno.EBADF),
    "pipe": (_pipe, errno.EINVAL),
    "fifo": (_fifo, errno.EINVAL),
    "socket": (_socket, errno.EINVAL),
    "null": (lambda p: os.open("/dev/null", os.O_RDWR), errno.EINVAL),
    "zero": (lambda p: os.open("/dev/zero", os.O_RDWR), errno.EINVAL),
    "event": (lambda p: os.eventfd(0), errno.EINVAL),
}
"""What makes it, and the errno that it is refused with where it has the mode wanted."""

kinds = pytest.mark.parametrize("kind", BAD)


def refused_code(error: OSError) -> int:
    assert error.errno is not None
    return error.errno


@kinds
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_it_is_refused_as_an_image(path: Path, kind: str, mode: str) -> None:
    fd = BAD[kind][0](path)
    flags = getfl(fd)
    with pytest.raises(ImageIOError) as caught:
        fdstash.open(fd, mode, format="raw", name="disk")
    assert refused_code(caught.value) in {BAD[kind][1], errno.ENXIO, errno.EISDIR, errno.EINVAL}
    assert caught.value.filename == "disk"
    assert getfl(fd) == flags
    os.close(fd)
    assert path.read_bytes() == noise(SIZE, 1)


@kinds
def test_it_is_refused_in_a_stash_and_the_path_is_not_tried(path: Path, kind: str) -> None:
    with FDStash() as stash:
        stash.give(str(path), BAD[kind][0](path))
        before = open_descriptors()
        with pytest.raises(ImageIOError):
            fdstash.open(path, "r+", format="raw", stash=stash)
        assert open_descriptors() == before
        assert stash.names() == [str(path)]


@kinds
def test_it_is_refused_for_an_extent(tmp_path: Path, kind: str) -> None:
    disk = make_flat(tmp_path)
    with FDStash() as stash:
        stash.give(disk.files[2].name, BAD[kind][0](disk.files[2]))
        before = open_descriptors()
        with pytest.raises(ImageIOError) as caught:
            fdstash.open(disk.path, "r+", stash=stash)
        assert caught.value.filename == str(disk.files[2])
        assert open_descriptors() == before


@kinds
def test_it_never_takes_the_place_of_a_description_that_serves(path: Path, kind: str) -> None:
    """A reopen that is offered it either does without it or is refused."""
    with FDStash() as stash, fdstash.open(path, "r+", format="raw") as image:
        stash.give(str(path), BAD[kind][0](path))
        for options in ({"mode": "r"}, {"mode": "r+", "cache": "none"}, {"cache": "writeback"}):
            before = image.files, open_descriptors()
            try:
                report = image.reopen(stash=stash, **options)  # type: ignore[arg-type]
            except ReopenError as error:
                assert error.rolled_back
                assert (image.files, open_descriptors()) == before
            else:
                assert "stash" not in report.routes.values()
            assert_as_kernel_says(image)
            assert image.pread(SIZE, 0) == noise(SIZE, 1)
            flags = getfl(image.files[0].fd)
            assert not flags & (os.O_APPEND | os.O_PATH)
            assert stat.S_ISREG(os.fstat(image.files[0].fd).st_mode)


def test_pwrite_on_an_append_descriptor_appends(path: Path) -> None:
    """Why O_APPEND is refused."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    os.pwrite(fd, b"at zero", 0)
    os.close(fd)
    assert path.read_bytes() == noise(SIZE, 1) + b"at zero"


def test_append_set_behind_our_back_is_refused_by_the_next_reopen(path: Path) -> None:
    """Whoever shares a description that was passed in can set O_APPEND on it at any time."""
    import fcntl  # noqa: PLC0415 - only here

    fd = os.open(path, os.O_RDWR)
    with FDStash() as stash, fdstash.open(path, "r+", format="raw") as image:
        stash.give(str(path), os.dup(fd))
        image.reopen(cache="none")
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        with pytest.raises(ReopenError) as caught:
            image.reopen(cache="writeback", stash=stash)
        assert caught.value.errno == errno.EBADF
        assert image.cache == "none"
        assert is_direct(image.files[0].fd)
    os.close(fd)


# ------------------------------------------------------------------ the wrong access mode


@pytest.fixture
def wrong_mode(path: Path) -> Iterator[Callable[[int], FDStash]]:
    with ExitStack() as made:

        def make(flags: int) -> FDStash:
            stash = made.enter_context(FDStash())
            stash.give(str(path), os.open(path, flags))
            return stash

        yield make


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_DIRECT])
def test_the_wrong_mode_is_never_used_as_it_is(
    path: Path, wrong_mode: Callable[[int], FDStash], flags: int
) -> None:
    """Where the file may be opened again, its inode serves; never the description itself."""
    with fdstash.open(path, "r+", format="raw", stash=wrong_mode(flags)) as image:
        slot = image.files[0].fd
        assert access_mode(slot) == "r+"
        assert not is_direct(slot)
        image.pwrite(b"x", 1)
        with pytest.raises(ImageIOError) as caught:
            image.pwrite(b"x", SIZE)
        assert caught.value.errno == errno.ENOSPC


def _open_received(sock: socket.socket, name: str, mode: str) -> list[object]:
    """As somebody who may not open the file by himself."""
    with FDStash.receive(sock) as stash:
        before = open_descriptors()
        try:
            image = fdstash.open(name, mode, format="raw", stash=stash, lock=False)
        except OSError as error:
            return [type(error).__name__, error.errno, str(error), open_descriptors() == before]
        result = _reopen_received(image, stash)
        image.close()
        return result


def _reopen_received(image: Image, stash: FDStash) -> list[object]:
    other = "r" if image.mode == "r+" else "r+"
    before = open_descriptors()
    try:
        image.reopen(mode=other, stash=stash)
    except ReopenError as error:
        same = open_descriptors() == before and image.mode != other
        return ["reopen", error.errno, str(error), same]
    return ["reopened", access_mode(image.files[0].fd), "", True]


@pytest.mark.root
@pytest.mark.parametrize(
    ("flags", "mode", "outcome", "text"),
    [
        (os.O_RDONLY, "r+", ["ImageIOError", errno.EACCES], "'r+' was not passed"),
        (os.O_WRONLY, "r", ["ImageIOError", errno.EACCES], "'r' was not passed"),
        (os.O_RDONLY, "r", ["reopen", errno.EACCES], "mode r+"),
        (os.O_RDWR, "r+", ["reopen", errno.EACCES], "mode r"),
    ],
)
def test_the_wrong_mode_is_refused_where_the_file_may_not_be_opened_again(
    path: Path, flags: int, mode: str, outcome: list[object], text: str
) -> None:
    need_root("another user id")
    os.chmod(path, 0o600)
    with FDStash() as stash:
        stash.give("disk", os.open(path, flags))
        result = run_as(_open_received, "disk", mode, hidden=[path.parent], send=stash.send)
    assert result[:2] == outcome
    assert text in result[2]
    assert result[3], "something has changed"
