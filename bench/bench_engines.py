"""Which engine moves bytes for the least, in which cache mode? `auto` follows what this finds.

A queue of depth 32, 4 KiB at random, a whole list of offsets in one call, so that no Python is
measured.
"""

from __future__ import annotations

import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fdstash
from bench.passes import BLOCK, Pass, compare, random_offsets, twin
from bench.results import question

ASKED = question(
    __file__,
    "What does a request of 4 KiB cost with 32 at once, by engine?",
    "the engine psync: system calls that wait",
)

SIZE = 64 << 20
REQUESTS = 1000
DEPTH = 32


@pytest.fixture(scope="module", params=["tmpfs-cached", "ext4-cached", "ext4-direct"])
def image(request: pytest.FixtureRequest) -> Iterator[tuple[str, fdstash.Image]]:
    place, mode = request.param.split("-")
    folder: Path = request.getfixturevalue(place)
    folder = folder / f"engines-{mode}"
    folder.mkdir()
    cache = "none" if mode == "direct" else "writeback"
    with fdstash.open(twin(folder, SIZE), "r+", format="raw", cache=cache) as opened:
        yield f"{place}, {mode}", opened


def many(queue: fdstash.Queue, kind: str, memory: fdstash.AlignedBuffer) -> Pass:
    offsets = array.array("q", random_offsets(SIZE, REQUESTS))
    if kind == "read":
        return lambda: queue.read_many(offsets, BLOCK, memory)
    return lambda: queue.write_many(offsets, BLOCK, memory)


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize("engine", ["auto", "io_uring", "threads"])
def test_engine(
    benchmark: BenchmarkFixture, image: tuple[str, fdstash.Image], engine: str, kind: str
) -> None:
    place, opened = image
    with ExitStack() as stack:
        memory = stack.enter_context(fdstash.AlignedBuffer(REQUESTS * BLOCK))
        # Closed before the memory, which they have pinned.
        ours = stack.enter_context(opened.queue(DEPTH, engine=engine))
        peer = stack.enter_context(opened.queue(DEPTH, engine="psync"))
        ours.pin(memory)
        compare(
            benchmark,
            ASKED,
            f"{place}, {kind}, {engine}",
            many(ours, kind, memory),
            many(peer, kind, memory),
            requests=REQUESTS,
            full=400,
        )
