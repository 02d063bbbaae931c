"""What does a call of one request cost from Python, beside the same call of `os`?

4 KiB at random, one call at a time, from the page cache: what is measured is the boundary, not the
disk. Ours are those of an image opened ``r+``, raw.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fdstash
from bench.passes import BLOCK, Pass, compare, random_offsets, reads, twin, writes
from bench.results import Target, question

ASKED = question(
    __file__,
    "What does a call of 4 KiB cost from Python, one at a time?",
    "os.preadv, os.pread and os.pwrite of the same file",
)

SIZE = 64 << 20
REQUESTS = 1000
#: Of the peer's speed.
TARGETS = {"preadv": 0.9, "pread": 0.7, "pwrite": 0.7}


@pytest.fixture(scope="module", params=["tmpfs", "ext4"])
def file(request: pytest.FixtureRequest) -> Iterator[tuple[str, fdstash.Image, int]]:
    folder: Path = request.getfixturevalue(request.param) / "calls"
    folder.mkdir()
    path = twin(folder, SIZE)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    with fdstash.open(path, "r+", format="raw") as image:
        yield request.param, image, fd
    os.close(fd)


def ours(image: fdstash.Image, call: str) -> Pass:
    offsets = random_offsets(SIZE, REQUESTS)
    if call != "pread":
        return (reads if call == "preadv" else writes)(image, offsets)

    def run() -> None:
        for offset in offsets:
            image.pread(BLOCK, offset)

    return run


def system(fd: int, call: str) -> Pass:
    offsets = random_offsets(SIZE, REQUESTS)
    buffer = fdstash.AlignedBuffer(BLOCK)
    buffers = [buffer]

    def preadv() -> None:
        for offset in offsets:
            os.preadv(fd, buffers, offset)

    def pread() -> None:
        for offset in offsets:
            os.pread(fd, BLOCK, offset)

    def pwrite() -> None:
        for offset in offsets:
            os.pwrite(fd, buffer, offset)

    return {"preadv": preadv, "pread": pread, "pwrite": pwrite}[call]


@pytest.mark.parametrize("call", TARGETS)
def test_call(benchmark: BenchmarkFixture, file: tuple[str, fdstash.Image, int], call: str) -> None:
    place, image, fd = file
    compare(
        benchmark,
        ASKED,
        f"{place}, {call}",
        ours(image, call),
        system(fd, call),
        requests=REQUESTS,
        full=1000,
        target=Target("ratio", 1 / TARGETS[call]),
    )
