"""The load generator: it does what its plan says, and misses no failure and no wrong byte."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import Image, ImageIOError
from fdstash.bench.generator import Job, Plan, Totals
from fdstash.queue import ENGINES
from tests.support.disks import make_raw

BLOCK = 4096
BLOCKS = 64
PLAN = Plan(offset=0, blocks=BLOCKS, block_bytes=BLOCK, depth=8, requests=200, verify=True)

pytestmark = pytest.mark.threads


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_raw(tmp_path, BLOCKS * BLOCK)


@pytest.fixture
def image(path: Path) -> Iterator[Image]:
    with fdstash.open(path, "r+", format="raw") as opened:
        yield opened


def ran(image: Image, plan: Plan, generations: array[int] | None = None) -> Totals:
    with Job(image, plan, generations=generations) as job:
        job.start()
        job.join(60)
        assert not job.is_alive()
        return job.totals


def fill(image: Image, **changes: Any) -> array[int]:
    """Every block in its first generation."""
    plan = replace(PLAN, pattern="sequential", read_percent=0, requests=BLOCKS, **changes)
    with Job(image, plan) as job:
        job.start()
        job.join(60)
        assert job.totals.writes == BLOCKS
        assert job.generations is not None
        return job.generations


def stamped(block: int, generation: int) -> bytes:
    return b"".join(
        struct.pack("<QQ", block * BLOCK + at, generation) for at in range(0, BLOCK, 16)
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_fill_writes_each_block_once(image: Image, path: Path, engine: str) -> None:
    assert set(fill(image, engine=engine)) == {1}
    assert path.read_bytes() == b"".join(stamped(block, 1) for block in range(BLOCKS))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_verified_load_finds_nothing_wrong(image: Image, path: Path, engine: str) -> None:
    generations = fill(image)
    plan = replace(PLAN, read_percent=50, requests=3000, engine=engine)
    totals = ran(image, plan, generations)
    assert totals.requests == 3000
    assert min(totals.reads, totals.writes) > 1000
    assert (totals.failed, totals.wrong, totals.in_flight) == (0, 0, 0)
    assert totals.read_bytes == totals.reads * BLOCK
    assert totals.written_bytes == totals.writes * BLOCK
    data = path.read_bytes()
    for block, generation in enumerate(generations):
        assert data[block * BLOCK :][:BLOCK] == stamped(block, generation)


@pytest.mark.parametrize(
    "wrong",
    [
        stamped(8, 1),  # of another place
        stamped(7, 2),  # never written
        stamped(7, 1)[:512] + stamped(7, 2)[512:],  # torn
        bytes(BLOCK),  # lost
        stamped(7, 1)[:-1] + b"\xff",  # one byte
    ],
    ids=["place", "generation", "torn", "lost", "byte"],
)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_wrong_bytes_are_found(image: Image, path: Path, wrong: bytes, *, known: bool) -> None:
    generations = fill(image)
    with path.open("r+b") as file:
        file.seek(7 * BLOCK)
        file.write(wrong)
    plan = replace(PLAN, pattern="sequential", requests=BLOCKS)
    totals = ran(image, plan, generations if known else None)
    if wrong == stamped(7, 2) and not known:
        assert totals.wrong == 0  # of that generation as a whole, it might be
    else:
        assert (totals.wrong, totals.wrong_offset) == (1, 7 * BLOCK)


def test_failed_writes_are_told_and_their_blocks_are_not_blamed(image: Image) -> None:
    generations = fill(image)
    plan = replace(PLAN, read_percent=50, requests=0, runtime=60)
    with Job(image, plan, generations=generations) as job:
        job.start()
        image.reopen(mode="r")
        while job.totals.failed < 100:
            time.sleep(0.001)
        image.reopen(mode="r+")
        before = job.totals.writes
        while job.totals.writes < before + 500:
            time.sleep(0.001)
        job.stop()
        job.join(60)
        totals = job.totals
    assert totals.error == -errno.EBADF
    assert totals.failed_offset % BLOCK == 0
    assert totals.wrong == 0


def test_a_stride(image: Image) -> None:
    visited = array("I", bytes(4 * BLOCKS))
    plan = replace(PLAN, pattern="strided", stride=16, read_percent=0, depth=1)
    for wanted in (4, 10):
        with Job(image, replace(plan, requests=wanted), generations=visited) as job:
            job.start()
            job.join(60)
        places = {block for block in range(BLOCKS) if visited[block]}
        assert places == {0, 16, 32, 48} | ({1, 17, 33, 49, 2, 18} if wanted == 10 else set())


def test_places_at_random_are_all_of_them(image: Image) -> None:
    visited = array("I", bytes(4 * BLOCKS))
    ran(image, replace(PLAN, read_percent=0, requests=2000), visited)
    assert min(visited) > 0
    assert sum(visited) == 2000


def test_a_part_of_an_image(image: Image, path: Path) -> None:
    before = path.read_bytes()
    plan = replace(PLAN, offset=8 * BLOCK, blocks=8, read_percent=0)
    assert ran(image, plan).failed == 0
    data = path.read_bytes()
    assert data[: 8 * BLOCK] == before[: 8 * BLOCK]
    assert data[16 * BLOCK :] == before[16 * BLOCK :]
    assert data[8 * BLOCK : 16 * BLOCK] != before[8 * BLOCK : 16 * BLOCK]


def test_more_at_once_than_there_are_blocks(image: Image) -> None:
    plan = replace(PLAN, blocks=2, depth=32, read_percent=50, requests=500)
    totals = ran(image, plan, fill(image)[:2])
    assert (totals.requests, totals.failed, totals.wrong) == (500, 0, 0)


def test_a_rate_is_kept(image: Image) -> None:
    totals = ran(image, replace(PLAN, verify=False, rate=500, requests=100))
    assert totals.requests == 100
    assert totals.nanoseconds >= 99 / 500 * 1e9


def test_latency_counts_from_when_a_request_was_due(image: Image) -> None:
    """What could not begin in time is late, and not only what was in flight."""
    plan = replace(PLAN, verify=False, read_percent=0, depth=1, rate=1000, requests=400)
    with Job(image, plan) as job:
        job.start()
        while job.totals.requests < 20:
            time.sleep(0.001)
        image.reopen(prepare=lambda: time.sleep(0.2))
        job.join(60)
        due, service = job.latency("WRITE_DUE"), job.latency("WRITE")
    assert len(due) == len(service) == 400
    late = len(due) - due.below(50_000_000)
    assert late >= 100
    assert len(service) - service.below(50_000_000) < late / 2


def test_without_a_rate_both_latencies_are_one(image: Image) -> None:
    with Job(image, PLAN) as job:
        job.start()
        job.join(60)
        assert list(job.latency("READ").counters) == list(job.latency("READ_DUE").counters)
        assert len(job.latency("READ")) == 200
        assert len(job.latency("WRITE")) == 0


def test_marks_count_what_is_in_flight(image: Image) -> None:
    held, go = threading.Event(), threading.Event()
    image.pwrite(bytes(BLOCK), 0)  # the first write of all waits for a reopen by itself

    def prepare() -> None:
        held.set()
        assert go.wait(30)

    reopening = threading.Thread(target=lambda: image.reopen(prepare=prepare))
    reopening.start()
    assert held.wait(30)
    plan = replace(PLAN, verify=False, read_percent=0, requests=100, engine="threads")
    with Job(image, plan) as job:
        assert job.mark(placebo=False) == 0
        job.start()
        while job.totals.in_flight < plan.depth:
            time.sleep(0.001)
        assert job.mark(placebo=False) == plan.depth
        assert job.mark(placebo=False) == plan.depth
        assert job.mark(placebo=True) == plan.depth
        go.set()
        job.join(60)
        reopening.join(30)
        assert len(job.latency("MARKED")) == 2 * plan.depth
        assert len(job.latency("PLACEBO")) == plan.depth
        assert job.mark(placebo=True) == 0


def test_intervals_add_up(image: Image) -> None:
    with Job(image, replace(PLAN, requests=0, runtime=1.2)) as job:
        job.start()
        job.join(60)
        intervals, totals = job.intervals(), job.totals
    assert sum(each.requests for each in intervals) == totals.requests
    starts = [each.start_ns for each in intervals]
    assert starts == sorted(set(starts))
    assert starts[0] >= totals.started_ns
    assert starts[-1] <= totals.ended_ns
    # More than a second does not fit the first width.
    assert {(b - a) % 2_000_000 for a, b in pairwise(starts)} == {0}
    assert all(each.mean_ns <= each.max_ns for each in intervals)


@pytest.mark.parametrize("end", ["stop", "close"])
def test_it_ends_when_it_is_told_to(image: Image, end: str) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    job = Job(image, replace(PLAN, requests=0, runtime=600))
    job.start()
    while job.totals.requests < 100:
        time.sleep(0.001)
    if end == "stop":
        job.stop()
        job.join(30)
        assert not job.is_alive()
    job.close()
    job.close()
    assert not job.is_alive()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(
    "change",
    [
        {"block_bytes": 4097},
        {"blocks": 0},
        {"blocks": (1 << 32) + 1, "verify": False},
        {"offset": 1 << 63 - 1, "blocks": 1 << 32, "block_bytes": 1 << 30, "verify": False},
        {"stride": 0},
        {"read_percent": 101},
    ],
)
def test_plans_that_cannot_be(image: Image, change: dict[str, int]) -> None:
    with pytest.raises((ImageIOError, OverflowError)):
        Job(image, replace(PLAN, **change))  # type: ignore[arg-type]


def test_reopens_under_a_verified_load(image: Image) -> None:
    generations = fill(image)
    plan = replace(PLAN, read_percent=50, requests=0, runtime=60)
    with Job(image, plan, generations=generations) as job:
        job.start()
        for number in range(40):
            image.reopen(cache=("none", "writeback", "directsync", "unsafe")[number % 4])
        job.stop()
        job.join(60)
        assert (job.totals.failed, job.totals.wrong) == (0, 0)
        assert job.totals.requests > 0
