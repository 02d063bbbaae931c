"""What is in flight when its queue, its thread or its interpreter comes to an end."""

from __future__ import annotations

import errno
import gc
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import fdstash
from fdstash import Image
from fdstash.queue import ENGINES
from tests.support.disks import make_raw, noise
from tests.support.forked import reap, run_in_child

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

ROOT = Path(__file__).parents[3]
PART = 20_000

#: Leaves a queue open, with requests in flight, and ends in different ways.
END = """
import sys, fdstash
path, layout, engine, how = sys.argv[1:]
image = fdstash.open(path, "r+", format=layout)
queue = image.queue(8, engine=engine)
if how == "driven":
    queue.write(b"x" * 100, 0)
    queue.wait()
buffers = [bytes([number]) * PART for number in range(8)]
for number, buffer in enumerate(buffers):
    queue.write(buffer, number * PART)
if how != "added":
    queue.submit()
if how == "cycle":
    queue.itself = queue
"""


@pytest.mark.parametrize("how", ["added", "submitted", "driven", "cycle"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", ["raw", "vmdk"])
def test_an_interpreter_ends_with_requests_in_flight(
    tmp_path: Path, layout: str, engine: str, how: str
) -> None:
    """What was submitted is done, whoever had to do it; nothing waits for what has ended."""
    if layout == "raw":
        path = make_raw(tmp_path, 8 * PART)
        path.write_bytes(bytes(8 * PART))
    else:
        path = tmp_path / "disk.vmdk"
        fdstash.create(path, "vmdk", 1 << 18, subformat="monolithicSparse")
    done = subprocess.run(
        [
            *(sys.executable, "-Walways", "-c", END.replace("PART", str(PART))),
            *(path, layout, engine, how),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning: unclosed queue" in done.stderr
    assert "Exception ignored" not in done.stderr
    with fdstash.open(path, format=layout) as image:
        found = image.pread(8 * PART, 0)
    wanted = b"".join(bytes([number]) * PART for number in range(8))
    assert found == (bytes(8 * PART) if how == "added" else wanted)


def test_an_unclosed_queue_is_closed_where_warnings_are_errors(image: Image, engine: str) -> None:
    """Its buffers are freed right after."""
    queue = image.queue(4, engine=engine)
    queue.read(bytearray(4096), 0)
    queue.submit()
    seen = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda what: seen.append(what.exc_type)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del queue
            gc.collect()
    finally:
        sys.unraisablehook = hook
    assert seen == [ResourceWarning]


def test_a_forked_child_ends_beside_a_driver(tmp_path: Path, engine: str) -> None:
    """Whose thread it does not have."""
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 1 << 18, subformat="monolithicSparse")
    with fdstash.open(path, "r+") as image, image.queue(4, engine=engine) as queue:
        queue.write(noise(4096), 0)
        assert [each.result for each in queue.wait()] == [4096]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fork beside threads
            child = run_in_child(queue.close)
        reap(child)
        queue.write(noise(4096, 1), 100_000)
        assert [each.result for each in queue.wait()] == [4096]


def test_what_a_driver_has_when_its_image_is_closed_is_told_so(tmp_path: Path, engine: str) -> None:
    """Done, or refused as a request that had not begun."""
    for turn in range(20):
        path = tmp_path / f"disk-{turn}.vmdk"
        fdstash.create(path, "vmdk", 1 << 18, subformat="monolithicSparse")
        image = fdstash.open(path, "r+")
        queue = image.queue(8, engine=engine)
        for number in range(8):
            queue.write(noise(4096), number * 30_000)
        queue.submit()
        image.close()
        results = set()
        while queue.in_flight:
            results |= {each.result for each in queue.wait()}
        queue.close()
        assert results <= {4096, -errno.ESHUTDOWN}
