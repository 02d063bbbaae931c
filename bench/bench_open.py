"""What does it cost to open a large disk, and one of many files?

An 8 TiB monolithicSparse, most of whose tables nobody reads, and a flat VMDK of many extents
(4,000, of the short tier 1,000): microseconds an image for the one, an extent for the other.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyvmdk
from dissect.hypervisor.disk.vmdk import VMDK
from pytest_benchmark.fixture import BenchmarkFixture

import fdstash
from bench.passes import compare
from bench.results import Question, Target, question
from tests.support import tier

ASKED = question(
    __file__,
    "What does it cost to open a large disk, and one of many files?",
    "pyvmdk (libvmdk) for the large one, VMDK of dissect.hypervisor for the many files",
)

LARGE = 8 << 40
EXTENTS = 4000 if tier.FULL else 1000
EXTENT_BYTES = 65536
#: Of the resident set, for the large disk.
MEMORY = 32 << 20

_GROWTH = """
import re, sys, fdstash

def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+([0-9]+)", status.read())[1]) * 1024

with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")
before = peak()
image = fdstash.open(sys.argv[1])
image.pread(4096, image.size // 2)
print(peak() - before)
image.close()
"""


def _memory(path: Path) -> int:
    """Bytes by which a process has grown at most that opens the image and reads from it."""
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def _conclude(asked: Question) -> list[str]:
    grown = asked.notes.get("large_disk_memory")
    return [] if grown is None else [f"The large disk takes {grown} bytes; at most {MEMORY}."]


ASKED.conclude = _conclude


def test_a_large_disk(benchmark: BenchmarkFixture, tmpfs: Path) -> None:
    path = tmpfs / "large.vmdk"
    fdstash.create(path, "vmdk", LARGE, subformat="monolithicSparse")

    def peer() -> None:
        handle = pyvmdk.handle()
        handle.open(str(path))
        handle.open_extent_data_files()
        handle.close()

    compare(
        benchmark,
        ASKED,
        "monolithicSparse, 8 TiB",
        lambda: fdstash.open(path).close(),
        peer,
        requests=1,
        full=800,
        target=Target("ours", 20000),
    )
    ASKED.notes["large_disk_memory"] = _memory(path)
    path.unlink()


def test_many_extents(benchmark: BenchmarkFixture, tmpfs: Path) -> None:
    folder = tmpfs / "many-extents"
    folder.mkdir()
    path = folder / "disk.vmdk"
    fdstash.create(
        path,
        "vmdk",
        EXTENTS * EXTENT_BYTES,
        subformat="twoGbMaxExtentFlat",
        extent_size=EXTENT_BYTES,
    )

    def peer() -> None:
        with path.open("rb") as file:
            for disk in VMDK(file).disks:
                disk.fh.close()

    opened: list[fdstash.Image] = []

    def ours() -> None:
        opened.append(fdstash.open(path))

    def peer_and_close() -> None:
        # What is asked is what an open costs, and the peer has nothing to close for us.
        while opened:
            opened.pop().close()
        peer()

    compare(
        benchmark,
        ASKED,
        f"twoGbMaxExtentFlat, {EXTENTS:,} extents, each",
        ours,
        peer_and_close,
        requests=EXTENTS,
        full=800,
        target=Target("ours", 40),
    )
    while opened:
        opened.pop().close()
