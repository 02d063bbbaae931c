"""The callable that runs before the commit: what it may do, and what waits for it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fdstash import Image, reopen_all
from tests.support.disks import make_flat
from tests.support.images import SIZE
from tests.support.refusals import Snapshot, refused

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_prepare_can_make_the_copy_that_the_new_path_needs(raw_image: Image, raw: Path) -> None:
    other = raw.with_name("other.raw")
    other.write_bytes(bytes(SIZE))
    raw_image.pwrite(b"before the copy", 4000)

    def copy() -> None:
        other.write_bytes(raw_image.pread(SIZE, 0))

    report = raw_image.reopen(path=other, prepare=copy)
    assert report.phases["prepare"] > 0
    assert raw_image.pread(15, 4000) == b"before the copy"
    raw_image.pwrite(b"after", 0)
    assert other.read_bytes()[:5] == b"after"
    assert raw.read_bytes()[:5] != b"after"


@pytest.mark.parametrize("other_path", [False, True])
def test_prepare_that_raises_leaves_everything_as_it_was(
    image: Image, tmp_path: Path, other_path: bool
) -> None:
    path = make_flat(tmp_path / "copy").path if other_path else None

    def prepare() -> None:
        raise RuntimeError("no copy today")

    error = refused(image, path=path, cache="none", prepare=prepare)
    assert (error.errno, error.phase) == (errno.ECANCELED, "prepare")
    assert "no copy today" in str(error)
    assert isinstance(error.__cause__, RuntimeError)


def test_an_interrupt_in_prepare_comes_through_and_leaves_everything_as_it_was(
    image: Image,
) -> None:
    def prepare() -> None:
        raise KeyboardInterrupt

    with Snapshot(image) as before:
        with pytest.raises(KeyboardInterrupt):
            image.reopen(cache="none", prepare=prepare)
        before.assert_same()


def test_prepare_may_read_and_may_not_write_reopen_or_close(image: Image) -> None:
    expected = image.pread(100, 0)
    seen: list[object] = []

    def attempt(call: Callable[[], object]) -> object:
        try:
            return call()
        except OSError as error:
            return error.errno

    def prepare() -> None:
        seen.append(attempt(lambda: image.pread(100, 0)))
        seen.append(attempt(lambda: image.pwrite(b"x", 0)))
        seen.append(attempt(lambda: image.pwrite(bytes(4096), 4096)))
        seen.append(attempt(lambda: image.zero(512, 0)))
        seen.append(attempt(lambda: image.reopen(mode="r")))
        seen.append(attempt(lambda: reopen_all([(image, {})])))
        seen.append(attempt(image.close))
        seen.append(attempt(lambda: image.resize(512)))
        seen.append(attempt(lambda: image.pwrite(b"x", 0)))  # the gate is still closed

    image.reopen(cache="none", prepare=prepare)
    assert seen[0] == expected
    assert seen[1:] == [errno.EDEADLK] * 8
    assert not image.closed
    assert image.cache == "none"


@pytest.mark.threads
def test_writes_wait_for_prepare_and_reads_do_not(image: Image) -> None:
    inside, leave = threading.Event(), threading.Event()
    done: list[str] = []

    def prepare() -> None:
        inside.set()
        assert leave.wait(30)

    def write() -> None:
        image.pwrite(b"w" * 512, 512)
        done.append("write")

    reopening = threading.Thread(target=lambda: image.reopen(cache="none", prepare=prepare))
    reopening.start()
    assert inside.wait(30)
    writing = threading.Thread(target=write)
    writing.start()
    image.pread(1 << 14, 0)  # would never return
    writing.join(0.1)
    assert done == []
    leave.set()
    writing.join(30)
    reopening.join(30)
    assert done == ["write"]
    assert image.pread(512, 512) == b"w" * 512
