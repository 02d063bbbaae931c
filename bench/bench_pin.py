"""Does it help to register memory with the ring? `Queue.pin` does what this compares.

32 requests at once at random offsets, a whole list of them in one call, so that no Python is
measured; through the ring, since the other engines know no registered memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fdstash
from bench.passes import compare, many, random_offsets, twin
from bench.results import question

ASKED = question(
    __file__,
    "What does a request cost whose memory is registered with the ring?",
    "the same request, of memory that is not",
)

SIZE = 64 << 20
DEPTH = 32
#: Of one pass, by bytes of each.
REQUESTS = {4096: 500, 65536: 100}


@pytest.fixture(scope="module", params=["cached", "direct"])
def image(request: pytest.FixtureRequest, ext4: Path) -> Iterator[tuple[str, fdstash.Image]]:
    folder = ext4 / f"pin-{request.param}"
    folder.mkdir()
    cache = "none" if request.param == "direct" else "writeback"
    with fdstash.open(twin(folder, SIZE), "r+", format="raw", cache=cache) as opened:
        yield f"ext4, {request.param}", opened


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize("size", REQUESTS)
def test_registered_memory(
    benchmark: BenchmarkFixture, image: tuple[str, fdstash.Image], size: int, kind: str
) -> None:
    place, opened = image
    with ExitStack() as stack:
        memory = stack.enter_context(fdstash.AlignedBuffer(REQUESTS[size] * size))
        # Closed before the memory, which one of them has pinned.
        registered, plain = (
            stack.enter_context(opened.queue(DEPTH, engine="io_uring")) for _ in range(2)
        )
        assert registered.pin(memory)
        offsets = random_offsets(SIZE - size, REQUESTS[size])
        compare(
            benchmark,
            ASKED,
            f"{place}, {kind} of {size >> 10} KiB, depth {DEPTH}",
            many(registered, kind, offsets, size, memory),
            many(plain, kind, offsets, size, memory),
            requests=REQUESTS[size],
            full=400,
        )
