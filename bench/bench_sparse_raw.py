"""Is a sparse image as fast as a raw one, where its grains are allocated?

Cached data on tmpfs, where the software shows; the grains lie in random order, so that no
two neighbours of the guest's disk are neighbours in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fdstash
from bench.passes import compare, fragmented, random_offsets, reads, threads, twin, writes
from bench.results import Target, question

ASKED = question(
    __file__,
    "What does a request to a sparse VMDK with grains in random order cost?",
    "the same request to a raw image, ours too",
)

SIZE = 128 << 20
REQUESTS = 4000
#: A throughput of 0.95, or 0.9, of the raw image's.
RANDOM = Target("ratio", 1 / 0.95)
SEQUENTIAL = Target("ratio", 1 / 0.9)


class Pair(NamedTuple):
    sparse: fdstash.Image
    raw: fdstash.Image


@pytest.fixture(scope="module")
def pair(tmpfs: Path) -> Iterator[Pair]:
    folder = tmpfs / "sparse-raw"
    folder.mkdir()
    raw = twin(folder, SIZE)
    sparse = fragmented(folder / "disk.vmdk", raw, subformat="monolithicSparse")
    with fdstash.open(sparse, "r+") as ours, fdstash.open(raw, "r+", format="raw") as peer:
        yield Pair(ours, peer)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_one_call_at_a_time(benchmark: BenchmarkFixture, pair: Pair, kind: str) -> None:
    make = reads if kind == "read" else writes
    offsets = random_offsets(SIZE, REQUESTS)
    compare(
        benchmark,
        ASKED,
        f"4 KiB random {kind}, one call at a time",
        make(pair.sparse, offsets),
        make(pair.raw, offsets),
        requests=REQUESTS,
        full=800,
        target=RANDOM,
    )


@pytest.mark.parametrize("kind", ["read", "write"])
def test_eight_threads(benchmark: BenchmarkFixture, pair: Pair, kind: str) -> None:
    make = reads if kind == "read" else writes
    offsets = random_offsets(SIZE, 4 * REQUESTS)
    compare(
        benchmark,
        ASKED,
        f"4 KiB random {kind}, eight threads",
        threads(lambda share: make(pair.sparse, share), offsets, 8),
        threads(lambda share: make(pair.raw, share), offsets, 8),
        requests=4 * REQUESTS,
        full=800,
        target=RANDOM,
    )


def test_sequential(benchmark: BenchmarkFixture, pair: Pair) -> None:
    offsets = range(0, SIZE, 1 << 20)
    compare(
        benchmark,
        ASKED,
        "1 MiB sequential read",
        reads(pair.sparse, offsets, 1 << 20),
        reads(pair.raw, offsets, 1 << 20),
        requests=len(offsets),
        full=800,
        target=SEQUENTIAL,
    )
