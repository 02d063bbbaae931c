"""Images that nobody closes: told, flushed, and closed in time."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

import fdstash
from tests.support.disks import make_flat, make_raw

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

#: A function knows its module, and so the image, which is garbage in a cycle then.
END = """
import sys, fdstash
image = fdstash.open(sys.argv[1], "r+")
def write():
    image.pwrite(b"written", 5)
write()
others = [fdstash.open(sys.argv[1], "r", lock=False) for _ in range(3)]
others.append(others)
"""


def test_garbage_in_a_cycle_is_closed_before_it_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    path = make_raw(tmp_path, 1 << 16)
    for number in range(20):
        image = fdstash.open(path, "r+", format="raw")
        image.pwrite(bytes([number]) * 10, 0)
        cycle: list[object] = [image]
        image.owner = cycle  # type: ignore[attr-defined]
        cycle.append(cycle)
        with pytest.warns(ResourceWarning, match="unclosed image"):  # noqa: PT031 - one thing
            del image, cycle
            gc.collect()
        assert path.read_bytes()[:10] == bytes([number]) * 10
    assert not ignored


def test_the_interpreter_ends_with_images_open(tmp_path: Path) -> None:
    disk = make_flat(tmp_path)
    done = subprocess.run(
        [sys.executable, "-Walways", "-c", END, disk.path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ResourceWarning: unclosed image") == 4
    assert "Exception" not in done.stderr
    with fdstash.open(disk.path) as image:
        assert image.pread(7, 5) == b"written"
