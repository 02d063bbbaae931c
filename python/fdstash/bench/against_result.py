"""What a match of two daemons has found."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fdstash.bench.daemons import OURS
from fdstash.bench.latency import exact_percentile
from fdstash.bench.nbd_load import Measured, percentile

__all__ = ["MatchResult", "Reopens", "Side", "Turn", "median", "reopen_percentile"]


def median(values: list[float]) -> float:
    """0 without any."""
    return statistics.median(values) if values else 0.0


def _percentiles(values: list[int]) -> dict[str, int]:
    shown = {f"p{percent}": exact_percentile(values, percent) for percent in (50, 99)}
    return shown | {"max": max(values, default=0)}


@dataclass
class Reopens:
    """Those of one load. Times are nanoseconds."""

    asked: int = 0
    times: list[int] = field(default_factory=list)  #: from each command to its answer
    at: list[int] = field(default_factory=list)  #: of each, since the load began
    round_trips: list[int] = field(default_factory=list)  #: the same of an empty command
    failures: int = 0
    messages: list[str] = field(default_factory=list)  #: the first few failures

    def failed(self, message: str) -> None:
        """Count one that was not done."""
        self.failures += 1
        if len(self.messages) < 3:
            self.messages.append(message)


@dataclass(frozen=True)
class Turn:
    """One daemon, started for this: a load, and a load with reopens."""

    plain: Measured
    reopening: Measured | None  #: None where reopens are refused
    reopens: Reopens | None


@dataclass
class Side:
    """All turns of one daemon."""

    version: str = ""
    refused: str | None = None  #: why it does not reopen this image, in its words
    turns: list[Turn] = field(default_factory=list)

    def loads(self, *, reopening: bool) -> list[Measured]:
        """Of each turn that has one."""
        found = [turn.reopening if reopening else turn.plain for turn in self.turns]
        return [load for load in found if load is not None]

    @property
    def reopens(self) -> list[Reopens]:
        """Of each turn that has any."""
        return [turn.reopens for turn in self.turns if turn.reopens is not None]

    @property
    def reopen_times(self) -> list[int]:
        """Of all that were done."""
        return [time for each in self.reopens for time in each.times]

    @property
    def round_trips(self) -> list[int]:
        """Of the empty commands beside them."""
        return [time for each in self.reopens for time in each.round_trips]

    @property
    def failed_reopens(self) -> int:
        """That the daemon did not carry out although it can."""
        return sum(each.failures for each in self.reopens)

    @property
    def failed_requests(self) -> int:
        """Of all loads."""
        return sum(load.failed for way in (False, True) for load in self.loads(reopening=way))

    @property
    def clean(self) -> bool:
        """Whether nothing failed or was refused."""
        return not (self.refused or self.failed_reopens or self.failed_requests)

    def as_json(self) -> dict[str, Any]:
        """Ready for `json.dump`; times are nanoseconds."""
        return {
            "version": self.version,
            "refused": self.refused,
            "reopens": len(self.reopen_times),
            "failed_reopens": self.failed_reopens,
            "reopen_ns": _percentiles(self.reopen_times),
            "round_trip_ns": _percentiles(self.round_trips),
            "failed_requests": self.failed_requests,
            "plain": _load_json(self.loads(reopening=False)),
            "reopening": _load_json(self.loads(reopening=True)),
            "messages": [message for each in self.reopens for message in each.messages],
        }


def _load_json(loads: list[Measured]) -> dict[str, Any] | None:
    if not loads:
        return None
    latency: Counter[int] = sum((load.latency for load in loads), Counter())
    return {
        "iops": median([load.iops for load in loads]),
        "iops_each": [load.iops for load in loads],
        "requests": sum(load.requests for load in loads),
        "failed_requests": sum(load.failed for load in loads),
        "request_ns": {f"p{p:g}": percentile(latency, p) for p in (50, 99, 99.9)},
        "longest_request_ns": max(load.longest for load in loads),
    }


@dataclass
class MatchResult:
    """A whole match."""

    image: Mapping[str, Any]  #: what was served
    options: Mapping[str, Any]
    sides: Mapping[str, Side]  #: by the daemon's name, ours first
    peer: str
    started: float  #: seconds since 1970

    @property
    def clean(self) -> bool:
        """Of ours."""
        return self.sides[OURS].clean

    def ratios(self, value: Callable[[Turn], float | None]) -> list[float]:
        """Ours by the peer's, of each round in which both have such a value."""
        pairs = zip(self.sides[OURS].turns, self.sides[self.peer].turns, strict=False)
        found = ((value(ours), value(peer)) for ours, peer in pairs)
        return [a / b for a, b in found if a is not None and b]

    def measures(self) -> Iterator[tuple[str, list[float]]]:
        """The ratios of what both can be compared in, by name."""
        yield "iops", self.ratios(lambda turn: turn.plain.iops)
        yield (
            "iops_reopening",
            self.ratios(lambda turn: turn.reopening.iops if turn.reopening else None),
        )
        for percent in (50, 99):
            yield f"reopen_p{percent}", self.ratios(reopen_percentile(percent))

    def as_json(self) -> dict[str, Any]:
        """One object, ready for `json.dump`."""
        return {
            "clean": self.clean,
            "peer": self.peer,
            **{name: side.as_json() for name, side in self.sides.items()},
            "ratios": {name: median(found) if found else None for name, found in self.measures()},
            "image": dict(self.image),
            "options": dict(self.options),
        }


def reopen_percentile(percent: float) -> Callable[[Turn], float | None]:
    """Of a turn's reopens, nanoseconds; None without any."""

    def of(turn: Turn) -> float | None:
        times = turn.reopens.times if turn.reopens is not None else []
        return exact_percentile(times, percent) if times else None

    return of
