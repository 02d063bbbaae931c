"""The load generator's cells, baselines, flushes, and what happens to a load from outside."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import fdstash
from fdstash import Image
from fdstash.bench.cells import Cell, packed, shares
from fdstash.bench.generator import Job, Plan, Totals
from fdstash.bench.jobs import Jobs, fill, look_again
from fdstash.queue import ENGINES
from tests.support.disks import make_raw

SIZE = 256 << 10
PLAN = Plan(offset=0, blocks=1, block_bytes=4096, depth=1, requests=300, read_percent=50)

pytestmark = pytest.mark.threads


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_raw(tmp_path, SIZE)


@pytest.fixture
def image(path: Path) -> Iterator[Image]:
    with fdstash.open(path, "r+", format="raw") as opened:
        yield opened


def plans(*, verify: bool = True, requests: int = 300) -> list[Plan]:
    """Three jobs, whose cells share pages."""
    return [
        replace(PLAN, blocks=len(share), cells=share, verify=verify, requests=requests, seed=number)
        for number, share in enumerate(shares(packed(SIZE, 4096), 3, 1))
    ]


def of_bytes(cells: list[Cell], data: bytes) -> Plan:
    """A plan that leaves those bytes as they are."""
    baseline = bytearray(len(cells) * 4096)
    for number, (offset, length, _) in enumerate(cells):
        baseline[number * 4096 : number * 4096 + length] = data[offset : offset + length]
    return replace(PLAN, blocks=len(cells), cells=cells, verify=True, baseline=baseline)


def ran(image: Image, plan: Plan) -> Totals:
    with Job(image, plan) as job:
        job.start()
        job.join(60)
        assert not job.is_alive()
        return job.totals


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "auto"])
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_cells_that_share_pages_keep_apart(image: Image, engine: str, cache: str) -> None:
    image.reopen(cache=cache)
    wanted = [replace(plan, engine=engine) for plan in plans()]
    generations = fill(image, wanted, lambda *_: None)
    with Jobs(image, wanted, generations) as jobs:
        jobs.start()
        jobs.join()
        found, generations = jobs.found(), jobs.generations
    assert sum(found.requests) == 900
    assert min(found.requests) > 300
    assert (found.failed, found.wrong) == (0, 0)
    again = look_again(image, wanted, generations)
    assert (sum(again.requests), again.failed, again.wrong) == (len(packed(SIZE, 4096)), 0, 0)


def test_one_wrong_byte_of_an_odd_cell_is_found(image: Image, path: Path) -> None:
    wanted = plans()
    generations = fill(image, wanted, lambda *_: None)
    with path.open("r+b") as file:
        file.seek(1008 + 1007)
        file.write(b"\xff")
    found = look_again(image, wanted, generations)
    assert found.wrong == 1
    assert any("the first at 1008" in words for words in found.complaints())


@pytest.mark.parametrize("cells", [[Cell(0, 4097)], [Cell(0, 0)], [Cell(0, 1000)]])
def test_cells_that_cannot_be(image: Image, cells: list[Cell]) -> None:
    with pytest.raises(fdstash.ImageIOError):
        Job(image, replace(PLAN, cells=cells, verify=True))


def test_a_baseline_is_written_back_and_nothing_else_ever(image: Image, path: Path) -> None:
    data = random.Random(1).randbytes(SIZE)
    path.write_bytes(data)
    cells = [Cell(1, 77), Cell(4096, 4096), Cell(9000, 1001, writable=False)]
    totals = ran(image, of_bytes(cells, data))
    assert totals.requests == 300
    assert totals.writes > 50
    assert (totals.failed, totals.wrong) == (0, 0)
    assert path.read_bytes() == data


def test_what_is_only_read_is_never_written(image: Image, path: Path) -> None:
    data = path.read_bytes()
    totals = ran(image, of_bytes([Cell(9000, 1001, writable=False)], data))
    assert (totals.reads, totals.writes, totals.wrong) == (300, 0, 0)


def test_a_change_of_somebody_else_is_told_and_not_undone(image: Image, path: Path) -> None:
    data = path.read_bytes()
    plan = of_bytes([Cell(0, 4096), Cell(4096, 4096)], data)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"changed")
    totals = ran(image, plan)
    assert totals.wrong > 50
    assert totals.wrong_offset == 4096
    assert totals.writes > 20  # of the other block
    assert path.read_bytes()[4096 : 4096 + 7] == b"changed"


def test_flushes_come_after_so_many_writes(image: Image) -> None:
    plan = replace(PLAN, blocks=16, read_percent=0, requests=100, flush_every=7)
    with Job(image, plan) as job:
        job.start()
        job.join(60)
        totals = job.totals
        assert len(job.latency("FLUSH")) == totals.flushes
    assert (totals.writes, totals.failed) == (100, 0)
    assert totals.flushes == 100 // 7


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "auto"])
def test_no_write_is_under_way_while_writes_are_held(image: Image, path: Path, engine: str) -> None:
    plan = replace(PLAN, blocks=16, requests=0, verify=True, engine=engine)
    generations = fill(image, [plan], lambda *_: None)
    with Job(image, plan, generations=generations[0]) as job:
        job.start()
        for _ in range(5):
            writes = job.totals.writes
            while job.totals.writes < writes + 20:
                time.sleep(0.001)
            job.hold_writes()
            totals, before = job.totals, path.read_bytes()
            while job.totals.reads < totals.reads + 50:  # they go on
                time.sleep(0.001)
            assert job.totals.writes == totals.writes
            assert path.read_bytes() == before
            job.resume_writes()
        job.stop()
        job.join(60)
        assert (job.totals.failed, job.totals.wrong) == (0, 0)


def test_holding_writes_waits_for_one_that_takes_long(image: Image) -> None:
    held, go = threading.Event(), threading.Event()
    image.pwrite(bytes(4096), 0)

    def prepare() -> None:
        held.set()
        assert go.wait(30)

    reopening = threading.Thread(target=lambda: image.reopen(prepare=prepare))
    with Job(image, replace(PLAN, blocks=16, requests=0, read_percent=0)) as job:
        reopening.start()
        try:
            assert held.wait(30)
            job.start()
            while not job.totals.in_flight:  # the gate holds it
                time.sleep(0.001)
            holding = threading.Thread(target=job.hold_writes)
            holding.start()
            holding.join(0.1)
            assert holding.is_alive()
        finally:
            go.set()
        holding.join(30)
        assert not holding.is_alive()
        reopening.join(30)
        job.stop()
        job.join(60)


def test_what_begins_while_it_is_watched_is_marked_too(image: Image) -> None:
    plan = replace(PLAN, blocks=16, requests=0)
    with Job(image, plan) as job:
        job.watch(placebo=True, on=True)
        job.start()
        while job.totals.requests < 200:
            time.sleep(0.001)
        job.watch(placebo=True, on=False)
        at_most = job.totals.requests + plan.depth
        while job.totals.requests < at_most + 200:
            time.sleep(0.001)
        job.stop()
        job.join(60)
        assert 200 <= len(job.latency("PLACEBO")) <= at_most
        assert len(job.latency("MARKED")) == 0


def test_a_closed_image_fails_requests_at_a_guests_pace_until_another_comes(path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    plan = replace(PLAN, blocks=16, requests=0, pause=0.001, verify=True)
    first = fdstash.open(path, "r+", format="raw")
    generations = fill(first, [plan], lambda *_: None)
    with Job(first, plan, generations=generations[0]) as job:
        job.start()
        while job.totals.requests < 100:
            time.sleep(0.001)
        first.close()
        began = time.monotonic()
        before = job.totals.failed
        while job.totals.failed < before + 20:
            time.sleep(0.001)
        assert time.monotonic() - began >= 0.019
        with fdstash.open(path, "r+", format="raw") as second:
            job.attach(second)
            failed, requests = job.totals.failed, job.totals.requests
            while job.totals.requests < requests + 200:
                time.sleep(0.001)
            job.stop()
            job.join(60)
            assert job.totals.failed == failed
            assert job.totals.wrong == 0
            job.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_attaching_to_a_load_that_has_ended_leaves_nothing(image: Image, path: Path) -> None:
    with Job(image, replace(PLAN, blocks=16, requests=10)) as job:
        job.start()
        job.join(60)
        descriptors = len(os.listdir("/proc/self/fd"))
        job.attach(image)
        assert len(os.listdir("/proc/self/fd")) == descriptors
