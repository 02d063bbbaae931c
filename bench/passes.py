"""Passes over an image, ours and a peer's in turn: what one request costs in each."""

from __future__ import annotations

import array
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

import fdstash
from bench.pairs import alternate
from bench.results import Comparison, Question, Target

__all__ = [
    "BLOCK",
    "Pass",
    "compare",
    "fragmented",
    "many",
    "random_offsets",
    "reads",
    "threads",
    "twin",
    "writes",
]

BLOCK = 4096
GRAIN = 65536
_SEED = 20110614

#: Makes a number of requests, always the same.
Pass = Callable[[], object]


def random_offsets(size: int, count: int) -> list[int]:
    """Of blocks within `size` bytes."""
    pick = random.Random(_SEED)
    return [pick.randrange(size // BLOCK) * BLOCK for _ in range(count)]


def twin(folder: Path, size: int) -> Path:
    """A raw image of `size` bytes, none of which are zeros in a row."""
    path = folder / "twin.raw"
    pick = random.Random(_SEED)
    with path.open("wb") as file:
        for _ in range(size // GRAIN):
            file.write(pick.randbytes(GRAIN))
    return path


def fragmented(path: Path, raw: Path, **options: Any) -> Path:
    """A VMDK with the bytes of `raw`, whose grains were written in random order."""
    size = raw.stat().st_size
    fdstash.create(path, "vmdk", size, **options)
    grains = list(range(0, size, GRAIN))
    random.Random(_SEED).shuffle(grains)
    with fdstash.open(path, "r+") as image, raw.open("rb") as file:
        for offset in grains:
            file.seek(offset)
            image.pwrite(file.read(GRAIN), offset)
    return path


def reads(image: fdstash.Image, offsets: Sequence[int], n: int = BLOCK) -> Pass:
    """Of `n` bytes at each offset, into one pinned buffer."""
    buffers = [fdstash.AlignedBuffer(n)]

    def run() -> None:
        for offset in offsets:
            image.preadv(buffers, offset)

    return run


def writes(image: fdstash.Image, offsets: Sequence[int], n: int = BLOCK) -> Pass:
    """The same the other way round."""
    buffer = fdstash.AlignedBuffer(n)

    def run() -> None:
        for offset in offsets:
            image.pwrite(buffer, offset)

    return run


def many(
    queue: fdstash.Queue, kind: str, offsets: Sequence[int], n: int, memory: fdstash.AlignedBuffer
) -> Pass:
    """A read or write of `n` bytes at each offset, all of them in one call."""
    places = array.array("q", offsets)
    call = queue.read_many if kind == "read" else queue.write_many
    return lambda: call(places, n, memory)


def threads(make: Callable[[Sequence[int]], Pass], offsets: Sequence[int], count: int) -> Pass:
    """The passes that `make` gives for `count` shares of the offsets, all at once."""
    shares = [make(offsets[first::count]) for first in range(count)]

    def run() -> None:
        running = [threading.Thread(target=share) for share in shares]
        for each in running:
            each.start()
        for each in running:
            each.join()

    return run


def compare(
    benchmark: BenchmarkFixture,
    asked: Question,
    name: str,
    ours: Pass,
    peer: Pass,
    *,
    requests: int,
    full: int,
    target: Target | None = None,
    **notes: object,
) -> None:
    """A row: what one of the `requests` of a pass costs, the peer's pass before each of ours."""
    took: list[float] = []

    def set_up() -> tuple[tuple[()], dict[str, Any]]:
        start = time.perf_counter_ns()
        peer()
        took.append(float(time.perf_counter_ns() - start))
        return (), {}

    benchmark.group = asked.name
    found = alternate(benchmark, ours, set_up, full=full)
    if found is None:
        return
    row = Comparison.of(
        name,
        [each / requests for each in found],
        [each / requests for each in took[-len(found) :]],
        target,
        **notes,
    )
    asked.add(row)
    benchmark.extra_info.update(row.record())
