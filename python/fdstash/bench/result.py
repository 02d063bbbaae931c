"""What a run has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fdstash.bench.jobs import Found
from fdstash.bench.latency import Latency, exact_percentile

__all__ = ["Figures", "Refusals", "Result"]


def _percentiles(values: Sequence[int]) -> dict[str, int]:
    return {
        "p50": exact_percentile(values, 50),
        "p99": exact_percentile(values, 99),
        "max": max(values, default=0),
    }


@dataclass
class Refusals:
    """One kind of failure made on purpose."""

    made: int = 0
    refused: int = 0
    lost: int = 0  #: how often the image was lost by it
    errnos: set[str] = field(default_factory=set)


@dataclass
class Figures:
    """Of one way to reopen. Times are nanoseconds."""

    reopen_times: dict[str, list[int]] = field(default_factory=dict)  #: by kind of reopen
    failed_reopens: int = 0  #: that should have succeeded
    refusals: dict[str, Refusals] = field(default_factory=dict)
    lost_images: int = 0
    leaked_descriptors: int = 0
    found: Found = field(default_factory=Found)  #: by the load
    failed_at_the_end: int = 0  #: requests, of a last look at every block
    wrong_at_the_end: int = 0
    reopened_ns: list[int] = field(default_factory=list)  #: CLOCK_MONOTONIC
    seconds: float = 0.0
    messages: list[str] = field(default_factory=list)  #: the first few failures, in words

    def reopened(self, kind: str, nanoseconds: int) -> None:
        """Count a reopen that succeeded."""
        self.reopen_times.setdefault(kind, []).append(nanoseconds)

    def provoked(self, label: str, errno_name: str | None) -> None:
        """Count a failure made on purpose; None: it was not refused."""
        found = self.refusals.setdefault(label, Refusals())
        found.made += 1
        if errno_name is not None:
            found.refused += 1
            found.errnos.add(errno_name)

    def lost(self, kind: str, why: str) -> None:
        """Count a lost image."""
        self.lost_images += 1
        if kind in self.refusals:
            self.refusals[kind].lost += 1
        self.say(f"lost by {kind}: {why}")

    def say(self, message: str) -> None:
        """Keep a message, if it is one of the first."""
        if len(self.messages) < 10:
            self.messages.append(message)

    @property
    def requests(self) -> int:
        """That completed, well or not, flushes included."""
        return sum(self.found.requests) + self.found.flushes

    @property
    def failed_requests(self) -> int:
        """Of the load, and of the last look."""
        return self.found.failed + self.failed_at_the_end

    @property
    def wrong_blocks(self) -> int:
        """How often a block that was read did not hold what it had to."""
        return self.found.wrong + self.wrong_at_the_end

    @property
    def latency(self) -> Latency:
        """Of every request that succeeded."""
        return Latency.sum_of(
            self.found.latency[times]
            for times in ("READ_DUE", "WRITE_DUE", "FLUSH")
            if times in self.found.latency
        )

    def marked(self, *, placebo: bool) -> Latency:
        """Of requests in flight at a reopen, or at a placebo."""
        return self.found.latency.get("PLACEBO" if placebo else "MARKED", Latency.sum_of(()))

    @property
    def reopens(self) -> int:
        """How many succeeded."""
        return len(self.all_reopen_times)

    @property
    def all_reopen_times(self) -> list[int]:
        """Of every kind."""
        return [each for times in self.reopen_times.values() for each in times]

    @property
    def made_on_purpose(self) -> int:
        """Failures that were to make a reopen fail."""
        return sum(found.made for found in self.refusals.values())

    @property
    def refused_on_purpose(self) -> int:
        """Those that did."""
        return sum(found.refused for found in self.refusals.values())

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, failed, wrong or leaked, and what must be refused was."""
        return not (
            self.failed_reopens
            or self.lost_images
            or self.leaked_descriptors
            or self.failed_requests
            or self.wrong_blocks
            or self.made_on_purpose != self.refused_on_purpose
        )

    def as_json(self) -> dict[str, Any]:
        """Ready for `json.dump`; times are nanoseconds."""
        latency = self.latency
        marked, placebo = self.marked(placebo=False), self.marked(placebo=True)
        return {
            "reopens": self.reopens,
            "failed_reopens": self.failed_reopens,
            "reopen_ns": _percentiles(self.all_reopen_times),
            "kinds": {
                kind: {"reopens": len(times), "reopen_ns": _percentiles(times)}
                for kind, times in sorted(self.reopen_times.items())
            },
            "made_on_purpose": self.made_on_purpose,
            "refused_on_purpose": self.refused_on_purpose,
            "refusals": {
                label: {
                    "made": r.made,
                    "refused": r.refused,
                    "lost": r.lost,
                    "errno": sorted(r.errnos),
                }
                for label, r in sorted(self.refusals.items())
            },
            "lost_images": self.lost_images,
            "leaked_descriptors": self.leaked_descriptors,
            "requests": self.requests,
            "failed_requests": self.failed_requests,
            "wrong_blocks": self.wrong_blocks,
            "request_ns": {"p50": latency.percentile(50), "p99": latency.percentile(99)},
            "longest_request_ns": latency.largest,
            "in_flight_p999_ns": marked.percentile(99.9),
            "in_flight_requests": len(marked),
            "placebo_p999_ns": placebo.percentile(99.9),
            "placebo_requests": len(placebo),
            "seconds": round(self.seconds, 3),
            "messages": self.messages,
        }


@dataclass
class Result:
    """A whole run: fdstash's reopen, and close-then-open where it was asked for."""

    image: Mapping[str, Any]  #: what was reopened
    options: Mapping[str, Any]
    figures: Figures
    naive: Figures | None
    started: float  #: of the first requests, seconds since 1970

    @property
    def clean(self) -> bool:
        """Of fdstash's reopen; nobody expects it of the other."""
        return self.figures.clean

    def as_json(self) -> dict[str, Any]:
        """One object, ready for `json.dump`."""
        return {
            "clean": self.clean,
            **self.figures.as_json(),
            "naive": self.naive.as_json() if self.naive is not None else None,
            "image": dict(self.image),
            "options": dict(self.options),
        }
