"""Paired measurements: their statistics, the tables of a run, and the JSON that is kept.

What varies between two runs of a machine is often more than what is asked, so everything is
measured in pairs, ours and the peer's in turn, and reported as the median over the pairs, with the
95 % interval that the order statistics give it: it asks nothing of the distribution.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support import tier

__all__ = [
    "Comparison",
    "Interval",
    "Question",
    "Target",
    "fold",
    "linear_fit",
    "median_interval",
    "question",
    "questions",
    "table",
]

_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A median, and the interval that holds the true one with 95 % confidence."""

    median: float
    low: float
    high: float

    def shown(self, digits: int) -> str:
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def median_interval(values: Iterable[float]) -> Interval:
    """Of independent values; with fewer than six the interval is all that was seen."""
    ordered = sorted(values)
    n = len(ordered)
    if n == 0:
        raise ValueError("no values")
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    # The number of values below the true median is binomial(n, 1/2): the largest rank
    # below which it falls with a probability of at most half of what is left over.
    every = 2**n
    tail, ways, rank = 0, 1, 0
    while rank < n // 2:
        tail += ways
        if tail / every > (1 - _LEVEL) / 2:
            break
        ways = ways * (n - rank) // (rank + 1)
        rank += 1
    low = max(rank - 1, 0)
    return Interval(median, ordered[low], ordered[n - 1 - low])


def fold(values: Sequence[float]) -> list[float]:
    """The mean of each toggle and the toggle back, which may cost differently."""
    return [(values[i] + values[i + 1]) / 2 for i in range(0, len(values) - 1, 2)]


def linear_fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(offset, slope) of the line with the least squares of relative errors."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    above = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True))
    below = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    slope = above / below
    return mean_y - slope * mean_x, slope


@dataclass(frozen=True)
class Target:
    """At most `limit`, of the named measure: ``ratio``; ``difference``, ``ours``: microseconds.

    Recorded and never enforced. It is missed only where the whole interval lies beyond it.
    `fixed`: microseconds that a call may cost however little it does; said where a ratio is missed
    by no more.
    """

    measure: str
    limit: float
    fixed: float = 0

    def verdict(self, ratio: Interval, difference: Interval, ours: Interval) -> str:
        found = {"ratio": ratio, "difference": difference, "ours": ours}[self.measure]
        if found.high <= self.limit:
            return "met"
        if found.low <= self.limit:
            return "within noise"
        if self.fixed and difference.high <= self.fixed:
            return f"missed, by the fixed {self.fixed:g} us"
        return "missed"

    def __str__(self) -> str:
        if self.measure == "ratio":
            return f"at most {self.limit:.3g} times"
        if self.measure == "ours":
            return f"at most {self.limit:g} us"
        return f"at most {self.limit:g} us more"


@dataclass(frozen=True)
class Comparison:
    """Ours beside a peer, both in microseconds, measured in turn."""

    name: str
    ours: Interval
    peer: Interval
    ratio: Interval  #: ours / peer, of each pair
    difference: Interval  #: ours - peer, of each pair
    pairs: int
    target: Target | None = None
    notes: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        ours: Sequence[float],
        peer: Sequence[float],
        target: Target | None = None,
        **notes: object,
    ) -> Comparison:
        """From nanoseconds, one of each for every pair."""
        pairs = list(zip(ours, peer, strict=True))
        return cls(
            name,
            median_interval(a / 1000 for a in ours),
            median_interval(b / 1000 for b in peer),
            median_interval(a / b for a, b in pairs),
            median_interval((a - b) / 1000 for a, b in pairs),
            len(pairs),
            target,
            notes,
        )

    @property
    def verdict(self) -> str:
        return (
            ""
            if self.target is None
            else self.target.verdict(self.ratio, self.difference, self.ours)
        )

    def record(self) -> dict[str, Any]:
        record = asdict(self)
        record["target"] = None if self.target is None else str(self.target)
        record["verdict"] = self.verdict
        record |= record.pop("notes")
        return record

    def cells(self) -> list[str]:
        return [
            self.name,
            f"{self.ours.median:.1f}",
            f"{self.peer.median:.1f}",
            self.difference.shown(1),
            self.ratio.shown(2 if self.ratio.median >= 0.1 else 3),
            str(self.pairs),
            f"{self.target}: {self.verdict}" if self.target else "",
        ]


_HEADINGS = ["", "ours, us", "peer, us", "ours - peer, us", "ours / peer", "pairs", "target"]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in columns, the first to the left and the others to the right."""
    every = [headings, *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(headings))]
    lines = []
    for first, *others in every:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return lines


class Question:
    """What one file asks, and what this run has found."""

    def __init__(self, name: str, text: str, peer: str) -> None:
        self.name = name  #: of the file, without its suffix
        self.text = text
        self.peer = peer  #: what it is measured beside
        self.rows: list[Comparison] = []
        self.notes: dict[str, object] = {}
        #: Turn the rows into lines and notes once all are there.
        self.conclude: Callable[[Question], list[str]] | None = None

    def add(self, row: Comparison) -> None:
        self.rows.append(row)

    def lines(self) -> list[str]:
        """The table, and what follows from it."""
        lines = [f"{self.text} Peer: {self.peer}."]
        lines += table(_HEADINGS, [row.cells() for row in self.rows])
        if self.conclude is not None:
            lines += self.conclude(self)
        return lines

    def keep(self) -> None:
        """Write JSON to $FDSTASH_BENCH_JSON, and as evidence in the full tier."""
        record = {
            "question": self.text,
            "peer": self.peer,
            "python": platform.python_version(),
            "rows": [row.record() for row in self.rows],
            **self.notes,
        }
        tier.evidence(self.name, record)
        folder = os.environ.get("FDSTASH_BENCH_JSON")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            path = Path(folder) / f"{self.name}.json"
            path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


_questions: dict[str, Question] = {}


def question(file: str, text: str, peer: str) -> Question:
    """The question of a benchmark file (its ``__file__``); asked once for each."""
    name = Path(file).stem
    return _questions.setdefault(name, Question(name, text, peer))


def questions() -> list[Question]:
    """All that have an answer in this run."""
    return [asked for asked in _questions.values() if asked.rows]
