"""Images served and reopened from inside sandboxes, out of passed descriptors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdstash import FDStash
from tests.support.disks import ExtentSpec, make_flat, make_raw
from tests.support.sandbox import run_as, run_in_namespace

pytestmark = pytest.mark.root

EXTENTS = tuple(ExtentSpec("RW", 128, name=f"disk-{i}.bin") for i in range(3))
SIZE = 3 * 128 * 512
MODES = {"r": os.O_RDONLY, "r+": os.O_RDWR, "r direct": os.O_DIRECT}
MODES["r+ direct"] = os.O_RDWR | os.O_DIRECT


class Disk:
    """An image whose files are of mode 0600."""

    def __init__(self, folder: Path, format: str) -> None:
        self.format = format
        flat = make_flat(folder, EXTENTS) if format == "vmdk" else None
        self.path = flat.path if flat else make_raw(folder, SIZE)
        self.files = flat.files if flat else [self.path]
        for path in self.files:
            path.chmod(0o600)

    def guest_bytes(self) -> bytes:
        data = b"".join(path.read_bytes()[: 128 * 512] for path in self.files[1:])
        return data or self.path.read_bytes()

    def sender(self, *modes: str, locks: bool = True) -> Callable[[Any], None]:
        """Sends one descriptor for each file and mode, and one for each file's locks."""

        def send(sock: Any) -> None:
            with FDStash() as stash:
                for path in map(os.fspath, self.files):
                    for mode in modes:
                        stash.add(path, os.open(path, MODES[mode]))
                    if locks:
                        stash.give(f"lock:{path}", os.open(path, os.O_RDONLY))
                stash.send(sock)

        return send


@pytest.fixture(params=["raw", "vmdk"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    folder = tmp_path / "images"
    folder.mkdir()
    return Disk(folder, request.param)


_NAMESPACE = """
import os, fdstash
path, format, head, copies, size = args
stash = fdstash.FDStash.receive(sock)
image = fdstash.open(path, "r+", format=format, stash=stash)
result = {"visible": os.path.exists(path), "steps": [], "route": {}}
head = bytes.fromhex(head)
n = 0
def check(label, report=None):
    global n
    n += 1
    assert image.pread(size, 0)[512 * 1: 512 * 1 + len(head)] == head, label
    if image.mode == "r+":
        for k in range(3):
            at = k * size // 3 + 1024
            block = bytes([n]) * 512
            image.pwrite(block, at)
            assert image.pread(512, at) == block, label
        image.flush()
    if report is not None:
        result["route"][label] = sorted(set(report.routes.values()))
    result["steps"].append([label, image.mode, image.cache])
check("open")
check("stash", image.reopen(mode="r", cache="none", stash=stash))
check("stash up", image.reopen(mode="r+", cache="writeback", stash=stash))
check("proc", image.reopen(mode="r"))
check("setfl", image.reopen(cache="none"))
check("proc up", image.reopen(mode="r+"))
result["files"] = len(image.files)
try:
    image.reopen(path=path + ".gone")
except fdstash.ReopenError as error:
    result["gone"] = [type(error).__name__, error.errno, error.rolled_back]
check("rolled back")
for target in copies:
    check("path", image.reopen(path=target))
    check("same path", image.reopen(path=target, mode="r"))
    check("path up", image.reopen(path=target, mode="r+"))
image.close()
stash.close()
"""


def test_without_the_paths_every_route_and_every_reopen_works(disk: Disk, tmp_path: Path) -> None:
    visible = tmp_path / "visible"
    shutil.copytree(disk.path.parent, visible)
    copy = visible / disk.path.name
    head = disk.guest_bytes()[512:1024].hex()
    found = run_in_namespace(
        _NAMESPACE,
        os.fspath(disk.path),
        disk.format,
        head,
        [os.fspath(copy)],
        SIZE,
        hidden=[disk.path.parent],
        send=disk.sender("r+", "r direct", locks=False),
    )
    assert not found["visible"]
    assert found["files"] == len(disk.files)
    assert found["route"] == {
        "stash": ["stash"],
        "stash up": ["stash"],
        "proc": ["proc"],
        "setfl": ["setfl"],
        "proc up": ["proc"],
        "path": ["path"],
        "same path": ["path"],
        "path up": ["path"],
    }
    assert found["gone"][1:] == [2, True]
    # The last write before the change of path is in the hidden files, the last in the copy.
    steps = [label for label, _, _ in found["steps"]]
    assert disk.guest_bytes()[1024] == steps.index("rolled back") + 1
    last = Disk.__new__(Disk)
    last.files, last.path = [visible / p.name for p in disk.files], copy
    assert last.guest_bytes()[1024] == steps.index("path up") + 1


_USER = """
import os, fdstash
path, format, steps, size = args
stash = fdstash.FDStash.receive(sock)
try:
    os.close(os.open(path, os.O_RDONLY))
    readable = True
except PermissionError:
    readable = False
result = {"readable": readable, "steps": [], "uid": os.getuid()}
mode, cache = steps[0]
image = fdstash.open(path, mode, format=format, cache=cache, stash=stash)
fds = len(os.listdir("/proc/self/fd"))
expected = image.pread(size, 0)
result["first"] = expected[:512].hex()
def check(n):
    global expected
    if image.mode == "r+":
        for at in range(0, size, size // 3):
            image.pwrite(bytes([n + 1]) * 512, at)
            expected = expected[:at] + bytes([n + 1]) * 512 + expected[at + 512:]
        image.flush()
    assert image.pread(size, 0) == expected
check(0)
for n, (mode, cache) in enumerate(steps[1:], 1):
    before = image.mode, image.cache, image.files
    try:
        image.reopen(mode=mode, cache=cache, stash=stash)
        said = None
    except fdstash.ReopenError as error:
        assert (image.mode, image.cache, image.files) == before
        said = [error.errno, error.phase, error.file, error.rolled_back, str(error)]
    check(n)
    result["steps"].append([image.mode, image.cache, said])
result["leaked"] = len(os.listdir("/proc/self/fd")) - fds
image.close()
stash.close()
"""


def as_nobody(disk: Disk, steps: list[tuple[str, str]], *modes: str, locks: bool = True) -> Any:
    send = disk.sender(*modes, locks=locks)
    return run_as(_USER, os.fspath(disk.path), disk.format, steps, SIZE, send=send)


def test_another_user_reads_writes_and_reopens_between_the_modes_sent(disk: Disk) -> None:
    first = disk.guest_bytes()[:512]
    steps = [
        ("r+", "writeback"),
        ("r", "writeback"),
        ("r+", "writeback"),
        ("r+", "none"),
        ("r", "none"),
        ("r+", "none"),
        ("r", "writeback"),
        ("r+", "writethrough"),
    ]
    found = as_nobody(disk, steps, *MODES)
    assert (found["readable"], found["uid"], found["leaked"]) == (False, 65534, 0)
    assert bytes.fromhex(found["first"]) == first
    assert found["steps"] == [[mode, cache, None] for mode, cache in steps[1:]]
    data = disk.guest_bytes()
    for at in range(0, SIZE, SIZE // 3):
        assert data[at : at + 512] == bytes([len(steps)]) * 512


@pytest.mark.parametrize(
    ("sent", "start", "missing"),
    [("r", "r", "r+"), ("r+", "r+", "r")],
)
def test_a_mode_that_was_not_sent_is_named_and_the_image_serves_on(
    disk: Disk, sent: str, start: str, missing: str
) -> None:
    found = as_nobody(disk, [(start, "writeback"), (missing, "writeback")], sent)
    assert (found["readable"], found["leaked"]) == (False, 0)
    ((mode, cache, said),) = found["steps"]
    assert (mode, cache) == (start, "writeback")
    code, phase, file, rolled_back, message = said
    assert (code, phase, rolled_back) == (13, "acquire", True)
    assert file in map(os.fspath, disk.files)
    assert f"mode {missing};" in message


def test_an_open_in_a_mode_that_was_not_sent_names_it(disk: Disk) -> None:
    with pytest.raises(Exception, match=r"a descriptor for 'r\+' was not passed"):
        as_nobody(disk, [("r+", "writeback")], "r")


def test_without_a_descriptor_for_the_locks_the_open_says_what_to_pass(disk: Disk) -> None:
    with pytest.raises(Exception, match=f"pass one in the stash as 'lock:{disk.path}'"):
        as_nobody(disk, [("r+", "writeback")], "r+", locks=False)
