"""Which engine moves bytes for the least, in which cache mode? `auto` follows what this finds.

4 KiB at random, one, four or 32 at once, a whole list of offsets in one call, so that no Python is
measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fdstash
from bench.passes import BLOCK, compare, many, random_offsets, twin
from bench.results import question
from tests.support import tier

ASKED = question(
    __file__,
    "What does a request of 4 KiB cost, by engine and by how many are in flight?",
    "the engine psync: system calls that wait",
)

SIZE = 64 << 20
#: Of one pass: fewer where each waits for the device.
REQUESTS = {"cached": 1000, "direct": 200} if tier.FULL else {"cached": 100, "direct": 50}


@pytest.fixture(
    scope="module", params=["tmpfs-cached", "tmpfs-direct", "ext4-cached", "ext4-direct"]
)
def image(request: pytest.FixtureRequest) -> Iterator[tuple[str, int, fdstash.Image]]:
    place, mode = request.param.split("-")
    folder: Path = request.getfixturevalue(place)
    folder = folder / f"engines-{mode}"
    folder.mkdir()
    cache = "none" if mode == "direct" else "writeback"
    with fdstash.open(twin(folder, SIZE), "r+", format="raw", cache=cache) as opened:
        yield f"{place}, {mode}", REQUESTS[mode], opened


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize("engine", ["auto", "io_uring", "threads"])
@pytest.mark.parametrize("depth", [1, 4, 32])
def test_engine(
    benchmark: BenchmarkFixture,
    image: tuple[str, int, fdstash.Image],
    depth: int,
    engine: str,
    kind: str,
) -> None:
    place, requests, opened = image
    with ExitStack() as stack:
        memory = stack.enter_context(fdstash.AlignedBuffer(requests * BLOCK))
        # Closed before the memory, which they have pinned.
        ours = stack.enter_context(opened.queue(depth, engine=engine))
        peer = stack.enter_context(opened.queue(depth, engine="psync"))
        ours.pin(memory)
        offsets = random_offsets(SIZE, requests)
        compare(
            benchmark,
            ASKED,
            f"{place}, {kind}, depth {depth}, {engine}",
            many(ours, kind, offsets, BLOCK, memory),
            many(peer, kind, offsets, BLOCK, memory),
            requests=requests,
            full=200,
        )
