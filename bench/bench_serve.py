"""What does a reopen of a served image cost under load, and what does the load notice of it?

`fdstash bench reopen --against`: fio is the client of both daemons, a QMP client gives both the
same commands at the same moments, and the daemons run in turn, each for a load without reopens and
one with them. A row is the round trip of a reopen, how much of it an empty command does not take,
or the time from one request to the next while reopens are made; at full speed, and with so many
requests a second as both bear. Where the peer refuses to reopen an image there is nothing to stand
beside: the table below has its refusals, and what ours does. Requests without reopens:
`bench_export.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.results import Comparison, Question, Target, question, table
from fdstash.bench.against import Match, MatchSettings
from fdstash.bench.against_result import MatchResult, Side, Turn, median, reopen_percentile
from fdstash.bench.daemons import OURS
from fdstash.bench.latency import exact_percentile
from tests.support import tier
from tests.support.need import need_program

ASKED = question(
    __file__,
    "What does a reopen cost that a QMP client asks for, under 4 KiB randrw at depth 16 over NBD?",
    "qemu-storage-daemon",
)

PEER = "qemu-storage-daemon"
SIZE = (256 << 20) if tier.FULL else (8 << 20)
ROUNDS = 5 if tier.FULL else 1
SECONDS = 2.0 if tier.FULL else 0.25
EXTENTS = [0, 1, 8, 64] if tier.FULL else [0, 64]
#: Requests a second that both bear with time to spare: at full speed the faster daemon has the
#: greater load, and both processors with it, and a command waits for its turn.
RATE = 10_000
#: On average, seconds from the answer to one reopen to the next.
EVERY = 0.01 if tier.FULL else 0.004

#: Of the table below the rows, ready to be kept.
_SIDES: list[dict[str, object]] = []


def _settings(place: str, folder: Path, extents: int, rate: int) -> MatchSettings:
    return MatchSettings(
        format="vmdk" if extents else "raw",
        extents=extents or 1,
        made_bytes=SIZE,
        folder=str(folder),
        cache="none" if place == "disk" else "writeback",
        runtime=SECONDS,
        every=EVERY,
        rounds=ROUNDS,
        rate=rate,
    )


def _request_cost(turn: Turn) -> float | None:
    """Nanoseconds from one request to the next while reopens are made."""
    return 1e9 / turn.reopening.iops if turn.reopening else None


def _beyond_a_round_trip(turn: Turn) -> float | None:
    """Nanoseconds of the median reopen that an empty command does not take."""
    if turn.reopens is None or not turn.reopens.times:
        return None
    times, empty = turn.reopens.times, turn.reopens.round_trips
    return exact_percentile(times, 50) - exact_percentile(empty, 50)


#: What is compared, and how much of the peer's it should be at most. The throughput itself has no
#: target here: `bench_export.py` has it, without what the monitor's client takes of the processors.
_MEASURES: tuple[tuple[str, Callable[[Turn], float | None], Target | None], ...] = (
    ("reopen p50", reopen_percentile(50), Target("ratio", 0.35)),
    ("reopen p99", reopen_percentile(99), Target("ratio", 0.3)),
    ("reopen p50 less an empty command's", _beyond_a_round_trip, None),
    ("request, reopens", _request_cost, None),
)


def _empty_p99(turn: Turn) -> float | None:
    """Nanoseconds of the round trip alone: no reopen is quicker."""
    return exact_percentile(turn.reopens.round_trips, 99) if turn.reopens else None


#: What is measured of each of a daemon's turns.
_Measured = tuple[Sequence[Turn], Callable[[Turn], float | None]]


def _rows(
    name: str, one: _Measured, other: _Measured, target: Target | None = None
) -> Iterator[Comparison]:
    """One; none where the peer reopens nothing."""
    values = zip(map(one[1], one[0]), map(other[1], other[0]), strict=True)
    pairs = [(a, b) for a, b in values if a is not None and b is not None]
    if pairs:
        yield Comparison.of(name, [a for a, _ in pairs], [b for _, b in pairs], target)


def _compare(name: str, result: MatchResult) -> Iterator[Comparison]:
    ours, theirs = result.sides[OURS].turns, result.sides[PEER].turns
    for what, value, target in _MEASURES:
        yield from _rows(f"{name}, {what}", (ours, value), (theirs, value), target)
    for whose, turns in (("our", ours), ("their", theirs)):
        title = f"{name}, {whose} empty command's p99 by their reopen's"
        yield from _rows(title, (turns, _empty_p99), (theirs, reopen_percentile(99)))


def _told(name: str, daemon: str, side: Side) -> dict[str, object]:
    """One daemon's line of the table; times in microseconds."""
    times, empty = side.reopen_times, side.round_trips
    reopening, plain = side.loads(reopening=True), side.loads(reopening=False)
    return {
        "image": name,
        "daemon": daemon,
        "version": side.version,
        "reopens": len(times),
        "refusals": len(plain) if side.refused else 0,
        "refused": side.refused,
        "failed_reopens": side.failed_reopens,
        "reopen_us": [exact_percentile(times, p) / 1000 for p in (50, 99, 100)] if times else None,
        "empty_us": [exact_percentile(empty, p) / 1000 for p in (50, 99)] if empty else None,
        "longest_request_us": max(load.longest for load in [*plain, *reopening]) / 1000,
        "failed_requests": side.failed_requests,
        "iops": median([load.iops for load in plain]),
        "iops_reopening": median([load.iops for load in reopening]) if reopening else None,
    }


@pytest.mark.parametrize(
    ("extents", "rate"),
    [*((n, 0) for n in EXTENTS), (0, RATE)],
    ids=[*(f"vmdk-{n}" if n else "raw" for n in EXTENTS), "raw-at-a-rate"],
)
@pytest.mark.parametrize("place", ["tmpfs", "disk"])
def test_serve(
    request: pytest.FixtureRequest,
    benchmark: BenchmarkFixture,
    place: str,
    extents: int,
    rate: int,
) -> None:
    for program, package in (("fio", "fio"), (PEER, "qemu-system-common")):
        need_program(program, package)
    settings = _settings(place, request.getfixturevalue(place), extents, rate)
    name = f"{place}, {f'vmdk of {extents}' if extents else 'raw'}"
    if rate:
        name += f", {rate:,} requests/s"
    benchmark.group = ASKED.name
    with Match(settings) as match:
        benchmark.pedantic(match.turn, rounds=2 * ROUNDS)  # type: ignore[no-untyped-call]
        while not match.result().sides[OURS].reopen_times:  # a slow machine, or refused
            assert match.result().clean, match.result().as_json()
            match.turn()
        result = match.result()
    assert result.clean, result.as_json()
    if benchmark.stats is None:
        return
    for row in _compare(name, result):
        ASKED.add(row)
    told = [_told(name, daemon, side) for daemon, side in result.sides.items()]
    _SIDES.extend(told)
    benchmark.extra_info["sides"] = told


def _shown(side: dict[str, object]) -> list[str]:
    reopens, empty = side["reopen_us"] or [None] * 3, side["empty_us"] or [None] * 2
    assert isinstance(reopens, list)
    assert isinstance(empty, list)
    numbers = [*reopens, *empty, side["longest_request_us"], side["failed_requests"]]
    numbers += [side["iops"], side["iops_reopening"]]
    return [
        f"{side['image']}, {side['daemon']}",
        *(f"{side[count]}" for count in ("reopens", "refusals", "failed_reopens")),
        *("-" if number is None else f"{number:,.0f}" for number in numbers),
    ]


def _conclude(asked: Question) -> list[str]:
    asked.notes["sides"] = _SIDES
    headings = ["", "reopens", "refused", "failed", "p50, us", "p99, us", "max, us"]
    headings += ["empty, p50", "p99", "longest request, us", "failed", "requests/s", "with reopens"]
    lines = ["", *table(headings, [_shown(side) for side in _SIDES])]
    words = {str(side["refused"]) for side in _SIDES if side["refused"]}
    return [*lines, *(f'refused there: "{each}"' for each in sorted(words))]


ASKED.conclude = _conclude
