"""A verified load on each engine, with reopens without pause: nothing wrong, nothing leaked."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import Image
from fdstash.bench.generator import Job, Plan
from fdstash.queue import ENGINES
from tests.support import tier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

#: Of each engine, half of it on each kind of image.
SECONDS = 600.0 if tier.FULL else 2.0
SIZE = 16 << 20
#: The second is no multiple of a sector.
BLOCKS = (4096, 1008)
#: Of the process, from when the load has run for a while.
MOST_GROWTH = 32 << 20
_FOUND: dict[str, dict[str, Any]] = {}


def made(kind: str, folder: Path) -> Path:
    path = folder / f"disk.{kind}"
    if kind == "raw":
        fdstash.create(path, "raw", SIZE)
    else:
        fdstash.create(path, "vmdk", SIZE, subformat="monolithicSparse")
    return path


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def changes(path: Path) -> Iterator[dict[str, str]]:
    """Cache modes, and the same inode under another name."""
    other = path.with_name(f"other-{path.name}")
    os.link(path, other)
    modes = ("none", "writeback", "directsync", "unsafe", "writethrough")
    for mode, name in itertools.cycle(itertools.product(modes, (other, path))):
        yield {"cache": mode}
        yield {"path": str(name)}


def fill(image: Image, plan: Plan) -> Any:
    """Each block in its first generation."""
    first = Plan(
        **{**vars(plan), "pattern": "sequential", "read_percent": 0, "runtime": 0},
    )
    with Job(image, Plan(**{**vars(first), "requests": plan.blocks})) as job:
        job.start()
        job.join()
        assert job.totals.writes == plan.blocks
        assert job.totals.failed == 0
        return job.generations


def run(image: Image, path: Path, engine: str, seconds: float) -> dict[str, Any]:
    part = SIZE // len(BLOCKS)
    plans = [
        Plan(
            offset=number * part,
            blocks=part // block,
            block_bytes=block,
            depth=16,
            engine=engine,
            read_percent=50,
            runtime=seconds,
            seed=number + 1,
            verify=True,
        )
        for number, block in enumerate(BLOCKS)
    ]
    known = [fill(image, plan) for plan in plans]
    jobs = [Job(image, plan, generations=each) for plan, each in zip(plans, known, strict=True)]
    for job in jobs:
        job.start()
    reopens, early = 0, 0
    begun = time.monotonic()
    for change in changes(path):
        if not all(job.is_alive() for job in jobs):
            break
        image.reopen(**change, timeout=120)  # type: ignore[arg-type]
        reopens += 1
        if not early and time.monotonic() > begun + seconds / 4:
            early = resident()
    late = resident()
    for job in jobs:
        job.join()
    totals = [job.totals for job in jobs]
    for job in jobs:
        job.close()
    assert [(each.failed, each.wrong, each.in_flight) for each in totals] == [(0, 0, 0)] * 2
    assert min(each.requests for each in totals) > 0
    assert reopens > 3
    assert late - early < MOST_GROWTH
    return {
        "seconds": round(seconds, 1),
        "requests": sum(each.requests for each in totals),
        "requests by block": {b: each.requests for b, each in zip(BLOCKS, totals, strict=True)},
        "reopens": reopens,
        "failed_requests": 0,
        "wrong_blocks": 0,
        "resident_growth_bytes": late - early,
    }


@pytest.mark.parametrize("kind", ["raw", "vmdk"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_verified_load_with_reopens_without_pause(tmp_path: Path, engine: str, kind: str) -> None:
    path = made(kind, tmp_path)
    gc.collect()
    before = descriptors(), threads(), threading.active_count()
    with fdstash.open(path, "r+", format=kind) as image:
        _FOUND.setdefault(engine, {})[kind] = run(image, path, engine, SECONDS / 2)
    gc.collect()
    until = time.monotonic() + 10  # a thread's end takes a moment
    while threads() > before[1] and time.monotonic() < until:
        time.sleep(0.01)
    assert (descriptors(), threads(), threading.active_count()) == before
    assert fdstash.check(path, format=kind).clean if kind == "vmdk" else True
    tier.evidence(f"endurance-{engine}", {"by kind": _FOUND[engine], "leaked_descriptors": 0})
