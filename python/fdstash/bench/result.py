"""What a run has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fdstash.bench.histogram import exact_percentile

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
    requests: int = 0
    failed_requests: int = 0
    wrong_blocks: int = 0
    request_p50_ns: int = 0
    request_p99_ns: int = 0
    longest_request_ns: int = 0
    in_flight_p999_ns: int = 0
    in_flight_requests: int = 0  #: how many that is the percentile of
    placebo_p999_ns: int = 0
    placebo_requests: int = 0
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
            "request_ns": {"p50": self.request_p50_ns, "p99": self.request_p99_ns},
            "longest_request_ns": self.longest_request_ns,
            "in_flight_p999_ns": self.in_flight_p999_ns,
            "in_flight_requests": self.in_flight_requests,
            "placebo_p999_ns": self.placebo_p999_ns,
            "placebo_requests": self.placebo_requests,
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
