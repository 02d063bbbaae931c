"""Where standard input, output or error are closed, no descriptor of an image takes their number.

What the program, a library or the C runtime prints to them would be written into the image.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash
from tests.support.disks import make_flat, make_raw

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

ROOT = Path(__file__).resolve().parents[2]

CLOSED = [closed for length in (1, 2, 3) for closed in itertools.combinations((0, 1, 2), length)]

# The child reports through a descriptor of its own, since it has none of the usual ones.
_START = """
import os, sys
sys.path.insert(0, {root!r})
report = {report}
for fd in {closed}:
    os.close(fd)
try:
    from tests.faults.test_hazard_closed_stdio import {function}
    said = {function}({arguments})
except BaseException as error:
    import traceback
    said = traceback.format_exc()
os.write(report, (said or "").encode())
os._exit(0)
"""


def run_without(closed: tuple[int, ...], function: str, *arguments: str) -> str:
    """What the function returns, or its traceback; empty: all is well."""
    read_end, write_end = os.pipe()
    high = os.dup2(write_end, 200, inheritable=True)
    os.close(write_end)
    code = _START.format(
        root=str(ROOT),
        report=high,
        closed=closed,
        function=function,
        arguments=", ".join(map(repr, arguments)),
    )
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[high]) as child:
        os.close(high)
        with os.fdopen(read_end) as stream:
            said = stream.read()
    assert child.returncode == 0
    return said


def image_numbers(folder: str) -> list[int]:
    """Descriptors below 3 that lead to files of that folder."""
    found = []
    for fd in (0, 1, 2):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith(folder):
            found.append(fd)
    return found


def use_an_image(path: str, other: str) -> str:
    """Opens, every route of a reopen, a change of path, extracted and received descriptors."""
    folder = os.path.dirname(path)
    wrong: list[object] = []

    def look(what: object) -> None:
        if image_numbers(folder):
            wrong.append((what, image_numbers(folder)))

    with FDStash() as stash, fdstash.open(path, "r+") as image:
        look("open")
        for options in (
            {"cache": "none"},
            {"mode": "r"},
            {"mode": "r+", "cache": "writeback"},
            {"path": path},
            {"path": other},
            {"path": path, "mode": "r"},
        ):
            image.reopen(**options, prepare=lambda: look("acquired"))  # type: ignore[arg-type]
            look(options)
        image.extract_fds(stash)
        look("extract_fds")
        taken = stash.take(path)
        if taken < 3:
            wrong.append(("take", taken))
        os.close(taken)
        if stash.dup(other_name := stash.names()[0]) < 3:
            wrong.append(("dup", other_name))
        image.reopen(mode="r+")
        image.pwrite(b"x", 3)
        image.flush()
    fdstash.create(os.path.join(folder, "new.vmdk"), "vmdk", 1 << 20)
    fdstash.probe(path)
    return repr(wrong) if wrong else ""


def give_low_numbers(path: str) -> str:
    """Descriptors 0, 1 and 2 themselves are handed to a stash, and to `open`."""
    low = [os.open(path, os.O_RDWR) for _ in range(3)]
    if low != [0, 1, 2]:
        return f"opened as {low}"
    with fdstash.open(1, "r+", format="raw", name=path, lock=False) as image:
        if image.files[0].fd < 3:
            return f"the slot is {image.files[0].fd}"
    with FDStash() as stash:
        stash.give("a", 0)
        stash.add("a", 1)
        stash.give("b", 2)
        if image_numbers(os.path.dirname(path)):
            return f"still there: {image_numbers(os.path.dirname(path))}"
        taken = [stash.take("a"), stash.take("a"), stash.take("b")]
        if min(taken) < 3:
            return f"taken: {taken}"
        for fd in taken:
            os.close(fd)
    return ""


def print_an_error(path: str) -> str:
    """What any program does that opens a file and later complains."""
    fd = os.open(path, os.O_RDWR)
    os.write(2, b"something went wrong\n")
    return f"opened as {fd}"


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_no_image_descriptor_is_numbered_below_three(
    tmp_path: Path, closed: tuple[int, ...]
) -> None:
    """Seen with a core that takes numbers as they come: all seven fail, from `open` on."""
    disk = make_flat(tmp_path)
    other = tmp_path / "other.vmdk"
    os.link(disk.path, other)
    assert run_without(closed, "use_an_image", str(disk.path), str(other)) == ""


def test_low_numbers_that_are_given_are_moved_up(tmp_path: Path) -> None:
    assert run_without((0, 1, 2), "give_low_numbers", str(make_raw(tmp_path))) == ""


def test_a_plain_open_does_get_the_number_of_standard_error(tmp_path: Path) -> None:
    """And then a message lands in the image: what moving numbers up is for."""
    path = make_raw(tmp_path)
    assert run_without((2,), "print_an_error", str(path)) == "opened as 2"
    assert path.read_bytes().startswith(b"something went wrong\n")
