"""How long does a reopen hold the requests that are in flight?

Long requests are likelier to be in flight at any instant, with a reopen or without. So the peer
is the same run at placebo instants, at which nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.loads import PAIRS, SIZE
from bench.passes import twin
from bench.results import Comparison, Target, question
from fdstash.bench.io import IoSettings, run
from tests.support import tier

ASKED = question(
    __file__,
    "How long is the p99.9 of requests in flight at a reopen between writeback and none?",
    "requests in flight at other instants of the same runs",
)

#: A thousand reopens in all runs, in the full tier.
SECONDS = 1.5 if tier.FULL else 0.6


@pytest.fixture(scope="module", params=["tmpfs", "disk"])
def image(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    folder: Path = request.getfixturevalue(request.param)
    folder = folder / "io-reopen"
    folder.mkdir()
    path = twin(folder, SIZE)
    yield request.param, path
    path.unlink()


@pytest.mark.parametrize("rw", ["randread", "randrw"])
def test_in_flight(benchmark: BenchmarkFixture, image: tuple[str, Path], rw: str) -> None:
    place, path = image
    settings = IoSettings(
        image=str(path),
        format="raw",
        rw=rw,
        runtime=SECONDS,
        reopens=("none", "writeback"),
        every=0.008,
    )
    at_reopen: list[float] = []
    placebo: list[float] = []
    reopens = 0

    def turn() -> None:
        nonlocal reopens
        marked = other = 0.0
        while not (marked and other):  # on a slow machine a short run may have no reopen
            result = run(settings)
            assert result.clean, result.messages
            reopens += len(result.reopen_ns)
            marked = float(result.found.latency["MARKED"].percentile(99.9))
            other = float(result.found.latency["PLACEBO"].percentile(99.9))
        at_reopen.append(marked)
        placebo.append(other)

    benchmark.group = ASKED.name
    benchmark.pedantic(turn, rounds=PAIRS)  # type: ignore[no-untyped-call]
    if benchmark.stats is None:
        return
    row = Comparison.of(
        f"{place}, {rw}, 4 KiB, depth 32",
        at_reopen,
        placebo,
        Target("ratio", 1.5),
        reopens=reopens,
    )
    ASKED.add(row)
    benchmark.extra_info.update(row.record())
