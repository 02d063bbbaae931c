"""Every call of an open and of a reopen over a chain of parents fails once: all files, or none."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FDStash, Image
from tests.support.chains import Chain, make_chain
from tests.support.faultshim import FaultShim
from tests.support.kernel import open_descriptors
from tests.support.refusals import Snapshot
from tests.support.seen import check_served, locked_bytes

pytestmark = [pytest.mark.preload]

#: Classes of calls, and what they fail with. Not those that only give back what is held: what
#: they fail with is noted, and stops nothing.
FAULTS = {
    "openat": errno.EMFILE,
    "dup": errno.EMFILE,
    "dup3": errno.EMFILE,
    "pread": errno.EIO,
    "pwrite": errno.EIO,
    "fstat": errno.EIO,
    "F_GETFL": errno.EBADF,
    "F_SETFL": errno.EINVAL,
    "fdatasync": errno.EIO,
}
#: Of positions at most; more than any of these changes has calls of a class.
MOST = 200


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    found = make_chain(tmp_path / "vm", names=("base/vm.vmdk", "a.vmdk", "b.vmdk"))
    shutil.copytree(tmp_path / "vm", tmp_path / "copy")
    return found


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("call_class", FAULTS)
def test_an_open_that_fails_leaves_nothing(
    shim: FaultShim, chain: Chain, call_class: str, mode: str
) -> None:
    descriptors = open_descriptors()
    failures = 0
    for position in range(MOST):
        image: Image | None = None
        with shim.fault(call_class, position, FAULTS[call_class]) as met:
            try:
                image = fdstash.open(chain.top, mode)
            except (fdstash.Error, OSError) as error:
                assert str(error)
        if image is None:
            failures += 1
            assert met.fired
            assert open_descriptors() == descriptors
            assert [locked_bytes(path) for path in chain.files()] == [[]] * 6
            continue
        with image:
            check_served(image, bytearray(chain.guest))
            data = image.pread(image.size, 0)
        assert data == chain.guest or mode == "r+"
        restore(chain)
        if not met.fired:
            assert failures >= 6 or call_class not in ("openat", "pread", "fstat")
            return
    raise AssertionError("there is no end")


def restore(chain: Chain) -> None:
    """The bytes of the files as they were made; the files stay."""
    for path in chain.files():
        copy = chain.top.parent.parent / "copy" / path.relative_to(chain.top.parent)
        path.write_bytes(copy.read_bytes())


CHANGES: dict[str, dict[str, Any]] = {
    "mode": {"mode": "r"},
    "cache": {"cache": "none"},
    "both": {"mode": "r", "cache": "none"},
    "path": {"path": "copy/b.vmdk"},
    "backing": {"backing": "copy/a.vmdk"},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("call_class", FAULTS)
def test_a_reopen_that_fails_changes_no_file_of_the_chain(
    shim: FaultShim, chain: Chain, call_class: str, change: str
) -> None:
    options = dict(CHANGES[change])
    for key in ("path", "backing"):
        if key in options:
            options[key] = chain.top.parent.parent / options[key]
    with fdstash.open(chain.top, "r+", mark=False) as image, FDStash() as handed_out:
        image.extract_fds(handed_out)
        image.pread(image.size, 0)
        failures = 0
        for position in range(MOST):
            error: Exception | None = None
            with Snapshot(image) as before:
                descriptors = open_descriptors()
                with shim.fault(call_class, position, FAULTS[call_class]) as met:
                    try:
                        image.reopen(**options, timeout=None)
                    except (fdstash.Error, OSError) as failed:
                        error = failed
                if error is not None:
                    failures += 1
                    assert isinstance(error, fdstash.ReopenError), error
                    assert met.fired
                    assert error.rolled_back
                    assert open_descriptors() == descriptors
                    before.assert_same()
                    continue
            assert [file.mode for file in image.files[2:]] == ["r"] * 4
            assert image.pread(image.size, 0) == chain.guest
            if not met.fired:
                files = 2 if change == "mode" else 6
                assert failures >= files or call_class != "openat"
                return
            image.reopen(path=chain.top, mode="r+", cache="writeback")
            image.extract_fds(handed_out)
    raise AssertionError("there is no end")
