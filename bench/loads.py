"""Loads of ours and of peers: each a run of its own, which says what a request cost."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from bench.results import Comparison, Question, Target
from fdstash.bench.io import IoResult, IoSettings, run
from tests.support import tier
from tests.support.need import need_program

__all__ = [
    "FIO_RING",
    "PAIRS",
    "SECONDS",
    "SIZE",
    "Load",
    "best",
    "fio",
    "ours",
    "pairs",
    "qemu_img",
]

#: Of an image, bytes.
SIZE = (1 << 30) if tier.FULL else (64 << 20)
#: Of one run.
SECONDS = 1.0 if tier.FULL else 0.05
PAIRS = 15 if tier.FULL else 3
_TRIALS = 3 if tier.FULL else 1

#: Seconds for a run of a peer that takes a few at most, and how often it may fail to end.
_PATIENCE = 15
_ATTEMPTS = 8

#: Runs once; nanoseconds for each request.
Load = Callable[[], float]

#: What fio's io_uring can be told; the best of them is the peer.
_FIO_FLAGS: tuple[tuple[str, ...], ...] = (
    (),
    ("--registerfiles=1", "--fixedbufs=1"),
    ("--registerfiles=1", "--fixedbufs=1", "--nonvectored=1", "--iodepth_batch_submit=16"),
    ("--registerfiles=1", "--fixedbufs=1", "--sqthread_poll=1"),
)
FIO_RING = _FIO_FLAGS if tier.FULL else _FIO_FLAGS[1:2]


def _cost(result: IoResult) -> float:
    assert result.clean, result.messages
    return 1e9 * result.seconds / sum(result.requests)


def ours(settings: IoSettings) -> Load:
    """`fdstash bench io`."""
    return lambda: _cost(run(settings))


def fio(path: Path, rw: str, *words: str, bs: int = 4096, depth: int = 32) -> Load:
    """fio, with the random places that ours has: any block, again and again."""
    command = [
        need_program("fio", "fio"),
        *("--name=peer", f"--filename={path}", f"--rw={rw}", f"--bs={bs}", f"--iodepth={depth}"),
        *(f"--runtime={round(1000 * SECONDS)}ms", "--time_based", "--norandommap", "--thread"),
        *("--randrepeat=1", "--output-format=json", *words),
    ]

    def load() -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        assert job["error"] == 0, done.stdout
        return float(1e9 / (job["read"]["iops"] + job["write"]["iops"]))

    return load


def qemu_img(
    path: Path, kind: str, engine: str, *, stride: int, count: int, direct: bool, depth: int = 32
) -> Load:
    """`qemu-img bench`, which steps through the image."""
    command = [
        *(need_program("qemu-img", "qemu-utils"), "bench", "-U", "-f", kind, "-c", str(count)),
        *("-d", str(depth), "-s", "4096", "-S", str(stride), "-i", engine),
        *("-t", "none" if direct else "writeback", str(path)),
    ]

    def load() -> float:
        done = _ended(command)
        found = re.search(r"completed in ([0-9.]+) seconds", done.stdout)
        assert found, done.stdout + done.stderr
        return float(found[1]) * 1e9 / count

    return load


def _ended(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run it to its end: QEMU 7.2's io_uring on a VMDK of many extents stops for good at times."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=_PATIENCE
            )
        except subprocess.TimeoutExpired:
            continue
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE)


def best(loads: Iterable[tuple[str, Load]]) -> tuple[str, Load]:
    """The one that costs least; what cannot be run, or never ends, is left out."""
    costs = []
    for name, load in loads:
        try:
            costs.append((min(load() for _ in range(_TRIALS)), name, load))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            continue
    _, name, load = min(costs, key=lambda each: each[0])
    return name, load


def pairs(
    benchmark: BenchmarkFixture,
    asked: Question,
    name: str,
    one: Load,
    peer: Load,
    *,
    target: Target | None = None,
    **notes: object,
) -> None:
    """A row: the peer's run before each of ours."""
    found: list[float] = []
    beside: list[float] = []

    def set_up() -> None:
        beside.append(peer())

    def turn() -> None:
        found.append(one())

    benchmark.group = asked.name
    rounds = PAIRS if benchmark.enabled else 1
    benchmark.pedantic(turn, setup=set_up, rounds=rounds)  # type: ignore[no-untyped-call]
    if benchmark.stats is None:
        return
    row = Comparison.of(name, found[-rounds:], beside[-rounds:], target, **notes)
    asked.add(row)
    benchmark.extra_info.update(row.record())
