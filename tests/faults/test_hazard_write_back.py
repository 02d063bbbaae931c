"""A write-back error is not lost with the description that knows of it.

The kernel tells each description once, and one that is opened after somebody else was told hears
nothing. So the old description is asked before it is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FDStash, Image, ReopenError
from tests.support.disks import make_flat
from tests.support.hosts import FailingLoop
from tests.support.uncured import bare_exchange

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]

SIZE = 1 << 20


class Host:
    """An image on a device that has just failed to write, and another program that was told."""

    def __init__(self, failing: FailingLoop, path: Path, image: Image) -> None:
        self.failing = failing
        self.path = path
        self.image = image
        self._other = os.open(path, os.O_RDWR)

    def write(self) -> None:
        """What is acknowledged here will be lost."""
        self.failing.poison(self.path, length=SIZE)
        self.image.pwrite(b"b" * SIZE, 0)

    def tell_the_other(self) -> None:
        """Write back, and let another program be the first to hear of the failure."""
        with pytest.raises(OSError, match="Input/output error|No space left"):
            os.fsync(self._other)

    def fail(self) -> None:
        self.write()
        self.tell_the_other()

    def close(self) -> None:
        self.failing.repair()
        os.close(self._other)


def flush_errno(image: Image) -> int:
    """0 when the flush succeeds."""
    try:
        image.flush()
    except OSError as error:
        assert error.filename == image.name
        return error.errno or -1
    return 0


FAILED = (errno.EIO, errno.ENOSPC)


@pytest.fixture
def host(failing_loop: Callable[..., FailingLoop]) -> Iterator[Host]:
    failing = failing_loop()
    assert failing.folder is not None
    path = failing.folder / "disk.raw"
    path.write_bytes(b"a" * SIZE)
    image = fdstash.open(path, "r+", format="raw")
    made = Host(failing, path, image)
    yield made
    made.close()
    with contextlib.suppress(OSError):  # what a test has left untold is told now
        image.close()


@pytest.mark.parametrize(
    ("options", "route"),
    [
        ({"mode": "r"}, "proc"),
        ({"mode": "r", "cache": "none"}, "proc"),
        ({"cache": "none"}, "setfl"),
        ({"path": True}, "path"),
    ],
)
def test_an_error_before_a_swap_is_returned_by_the_next_flush(
    host: Host, options: dict[str, Any], route: str
) -> None:
    if "path" in options:
        options = {"path": str(host.path)}
    host.fail()
    report = host.image.reopen(**options)
    assert set(report.routes.values()) == {route}
    assert flush_errno(host.image) in FAILED
    assert flush_errno(host.image) == 0, "it is told once"
    assert host.image.mode == options.get("mode", "r+")


def test_an_error_survives_several_swaps_until_somebody_asks(host: Host) -> None:
    host.fail()
    for mode in ("r", "r+", "r", "r+"):
        host.image.reopen(mode=mode)
    assert flush_errno(host.image) in FAILED


def test_an_error_met_while_prepare_runs_is_returned_by_the_next_flush(host: Host) -> None:
    host.write()
    host.image.reopen(mode="r", prepare=host.tell_the_other)
    assert flush_errno(host.image) in FAILED


def test_an_error_is_kept_where_the_old_description_goes_to_a_stash(host: Host) -> None:
    with FDStash() as stash:
        host.image.extract_fds(stash)
        host.fail()
        assert set(host.image.reopen(cache="none").routes.values()) == {"proc"}
        assert flush_errno(host.image) in FAILED


def test_an_error_refuses_a_change_of_path_and_is_told_by_it(host: Host) -> None:
    copy = host.path.with_name("copy.raw")
    copy.write_bytes(b"a" * SIZE)
    host.fail()
    with pytest.raises(ReopenError) as caught:
        host.image.reopen(path=copy)
    assert caught.value.errno in FAILED
    assert (caught.value.phase, caught.value.rolled_back) == ("prepare", True)
    assert host.image.files[0].path == str(host.path)


def test_closing_an_image_that_was_made_read_only_tells_of_the_error(host: Host) -> None:
    host.fail()
    host.image.reopen(mode="r")
    with pytest.raises(OSError, match="flush|Input/output|No space"):
        host.image.close()
    assert host.image.closed


def test_the_error_of_one_extent_of_many_is_returned(
    failing_loop: Callable[..., FailingLoop],
) -> None:
    failing = failing_loop()
    assert failing.folder is not None
    disk = make_flat(failing.folder)
    with fdstash.open(disk.path, "r+") as image:
        victim = disk.files[3]
        failing.poison(victim)
        for start in range(0, image.size, 4096):
            image.pwrite(b"x" * min(4096, image.size - start), start)
        other = os.open(victim, os.O_RDWR)
        with pytest.raises(OSError, match="Input/output error|No space left"):
            os.fsync(other)
        os.close(other)
        image.reopen(mode="r")
        assert flush_errno(image) in FAILED
        assert flush_errno(image) == 0
        failing.repair()


def test_an_old_description_that_is_not_asked_takes_the_error_with_it(host: Host) -> None:
    """The reopen of the first test without its question: what would be lost."""
    host.fail()
    bare_exchange(host.image, mode="r", settle=False)
    assert flush_errno(host.image) == 0


def test_close_says_nothing_of_the_error(host: Host) -> None:
    """Why the old description is asked, and not just closed."""
    copy = os.open(host.path, os.O_RDWR)
    host.fail()
    os.close(copy)  # raises nothing
    assert flush_errno(host.image) in FAILED
