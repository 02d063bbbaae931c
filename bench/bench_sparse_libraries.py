"""How do the read-only libraries of PyPI compare, read from Python?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import pyvmdk
from dissect.hypervisor.disk.vmdk import VMDK
from pytest_benchmark.fixture import BenchmarkFixture

import fdstash
from bench.passes import BLOCK, Pass, compare, fragmented, random_offsets, reads, twin
from bench.results import Target, question

ASKED = question(
    __file__,
    "What does a 4 KiB random read of a sparse VMDK cost from Python?",
    "pyvmdk (libvmdk), and VMDK of dissect.hypervisor",
)

SIZE = 64 << 20
REQUESTS = 2000
#: Three times as many.
TARGET = Target("ratio", 1 / 3)


class Disk(NamedTuple):
    path: Path
    image: fdstash.Image


@pytest.fixture(scope="module", params=["monolithicSparse", "twoGbMaxExtentSparse"])
def disk(request: pytest.FixtureRequest, tmpfs: Path) -> Iterator[Disk]:
    subformat: str = request.param
    folder = tmpfs / f"libraries-{subformat}"
    folder.mkdir()
    path = fragmented(folder / "disk.vmdk", twin(folder, SIZE), subformat=subformat)
    with fdstash.open(path) as image:
        yield Disk(path, image)


def _pyvmdk(path: Path, offsets: list[int], stack: ExitStack) -> Pass:
    handle = pyvmdk.handle()
    handle.open(str(path))
    stack.callback(handle.close)
    handle.open_extent_data_files()

    def run() -> None:
        for offset in offsets:
            handle.read_buffer_at_offset(BLOCK, offset)

    return run


def _dissect(path: Path, offsets: list[int], stack: ExitStack) -> Pass:
    # What it opens by itself it does not close.
    stream = VMDK(stack.enter_context(path.open("rb")))
    for disk in stream.disks:
        stack.callback(disk.fh.close)

    def run() -> None:
        for offset in offsets:
            stream.seek(offset)
            stream.read(BLOCK)

    return run


@pytest.mark.parametrize("library", ["pyvmdk", "dissect"])
def test_random_read(benchmark: BenchmarkFixture, disk: Disk, library: str) -> None:
    offsets = random_offsets(SIZE, REQUESTS)
    with ExitStack() as stack:
        peer = (_pyvmdk if library == "pyvmdk" else _dissect)(disk.path, offsets, stack)
        compare(
            benchmark,
            ASKED,
            f"{disk.image.format_info['create-type']}, {library}",
            reads(disk.image, offsets),
            peer,
            requests=REQUESTS,
            full=800,
            target=TARGET,
        )
