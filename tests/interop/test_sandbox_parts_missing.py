"""Another user, who was sent the descriptors of all files but one, or all modes but one.

Whatever is missing is named before anything changes, also where it is found out last.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdstash import FDStash
from tests.support.disks import ExtentSpec, FlatDisk, make_flat
from tests.support.sandbox import run_as

pytestmark = pytest.mark.root

EXTENTS = tuple(ExtentSpec("RW", 128, name=f"disk-{i}.bin") for i in range(3))
FLAGS = {
    ("r", "writeback"): os.O_RDONLY,
    ("r", "none"): os.O_RDONLY | os.O_DIRECT,
    ("r+", "writeback"): os.O_RDWR,
    ("r+", "none"): os.O_RDWR | os.O_DIRECT,
}
STATES = list(FLAGS)


@pytest.fixture
def disk(tmp_path: Path) -> FlatDisk:
    folder = tmp_path / "images"
    made = make_flat(folder, EXTENTS)
    for path in made.files:
        path.chmod(0o600)
    return made


def sender(
    disk: FlatDisk, start: tuple[str, str], wanted: tuple[str, str], missing: int
) -> Callable[[Any], None]:
    """All of `start`, and of `wanted` all but the file of that number."""

    def send(sock: Any) -> None:
        with FDStash() as stash:
            for number, path in enumerate(map(os.fspath, disk.files)):
                stash.add(path, os.open(path, FLAGS[start]))
                if number != missing:
                    stash.add(path, os.open(path, FLAGS[wanted]))
                stash.give(f"lock:{path}", os.open(path, os.O_RDONLY))
            stash.send(sock)

    return send


_SCRIPT = """
import os, fdstash
path, start, wanted, all_at_once = args
stash = fdstash.FDStash.receive(sock)
image = fdstash.open(path, start[0], format="vmdk", cache=start[1], stash=stash)
data = image.pread(image.size, 0)
held = sorted(os.listdir("/proc/self/fd"))
before = image.mode, image.cache, image.files
options = {"mode": wanted[0], "cache": wanted[1], "stash": stash}
try:
    if all_at_once:
        fdstash.reopen_all([(image, options)])
    else:
        image.reopen(**options)
    result = {"said": None}
except fdstash.ReopenError as error:
    result = {"said": [error.errno, error.phase, error.file, error.rolled_back, str(error)]}
    assert isinstance(error, PermissionError)
    assert (image.mode, image.cache, image.files) == before
assert sorted(os.listdir("/proc/self/fd")) == held
assert image.pread(image.size, 0) == data
if image.mode == "r+":
    image.pwrite(data[100:5000], 100)
    image.flush()
image.close()
stash.close()
"""


@pytest.mark.parametrize("missing", [0, 3])
@pytest.mark.parametrize(("start", "wanted"), list(itertools.permutations(STATES, 2)))
def test_one_file_that_was_not_sent_in_the_mode_wanted_is_named(
    disk: FlatDisk, start: tuple[str, str], wanted: tuple[str, str], missing: int
) -> None:
    """Also where O_DIRECT alone is missing: the flags of what others hold are never set."""
    send = sender(disk, start, wanted, missing)
    found = run_as(_SCRIPT, os.fspath(disk.path), start, wanted, missing % 2, send=send)
    code, phase, file, rolled_back, message = found["said"]
    assert (code, phase, rolled_back) == (errno.EACCES, "acquire", True)
    assert file == os.fspath(disk.files[missing])
    assert f"mode {wanted[0]}" in message


@pytest.mark.parametrize(("start", "wanted"), [(STATES[0], STATES[3]), (STATES[2], STATES[1])])
def test_with_all_of_them_the_reopen_is_made(
    disk: FlatDisk, start: tuple[str, str], wanted: tuple[str, str]
) -> None:
    send = sender(disk, start, wanted, missing=-1)
    assert run_as(_SCRIPT, os.fspath(disk.path), start, wanted, False, send=send)["said"] is None
