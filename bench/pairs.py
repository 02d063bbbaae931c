"""Ours and a peer's in turn, under pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from bench.results import Comparison, Question, Target, fold
from bench.toggles import Toggles
from tests.support import tier

__all__ = ["SetUp", "alternate", "measure"]

#: Runs the peer, and says with what options ours is called next.
SetUp = Callable[[], tuple[tuple[()], dict[str, Any]]]

_WARM_UP = 4
_FEWEST = 40


def alternate(
    benchmark: BenchmarkFixture, ours: Callable[..., object], set_up: SetUp, *, full: int
) -> list[float] | None:
    """Call `set_up` and `ours` in turn; the nanoseconds of each call of ours but the first few.

    `full`: how often in the full tier. An even number of times, since a toggle there has a toggle
    back. None with --benchmark-disable, and then each is called once.
    """
    rounds = max(_FEWEST, tier.count(full)) // 2 * 2
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        ours, setup=set_up, rounds=rounds, warmup_rounds=_WARM_UP
    )
    if benchmark.stats is None:
        return None
    return [seconds * 1e9 for seconds in benchmark.stats.stats.data]


def measure(
    benchmark: BenchmarkFixture,
    pair: Toggles,
    asked: Question,
    name: str,
    *,
    full: int,
    target: Target | None = None,
    **notes: object,
) -> None:
    """Benchmark the image's reopen, a toggle of the loop before each, and add a row.

    A sample of the row is the mean of a toggle and the toggle back.
    """
    peer: list[float] = []

    def set_up() -> tuple[tuple[()], dict[str, Any]]:
        pair.prepare()
        peer.append(pair.peer())
        options = pair.options[pair.turn & 1]
        pair.turn += 1
        return (), options

    benchmark.group = asked.name
    ours = alternate(benchmark, pair.image.reopen, set_up, full=full)
    if ours is None:
        pair.checked()  # the toggle back
        return
    row = Comparison.of(name, fold(ours), fold(peer[-len(ours) :]), target, **notes)
    asked.add(row)
    benchmark.extra_info.update(row.record())
