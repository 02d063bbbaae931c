"""Which requests were in flight at an instant, and how long they took in all.

Long requests are likelier to be in flight at any instant, a reopen or not. So the
stall that a reopen causes is measured against placebo instants: moments of the
same run at which nothing was done.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from fdstash.bench.histogram import Histogram, exact_percentile

__all__ = ["InFlight", "RequestLog"]

_CHUNK = 4096


class RequestLog:
    """When each request of one thread began and ended, handed over in chunks.

    `add` and `close` belong to that thread; `chunks` may be emptied by another.
    """

    __slots__ = ("_ends", "_starts", "chunks", "histogram")

    def __init__(self) -> None:
        self._starts = array("q")
        self._ends = array("q")
        self.chunks: deque[tuple[array[int], array[int]]] = deque()
        self.histogram = Histogram()

    def add(self, start: int, end: int) -> None:
        """One request, by `time.perf_counter_ns`."""
        self._starts.append(start)
        self._ends.append(end)
        self.histogram.record(end - start)
        if len(self._starts) == _CHUNK:
            self.close()

    def close(self) -> None:
        """Hand over what there is."""
        if self._starts:
            self.chunks.append((self._starts, self._ends))
            self._starts, self._ends = array("q"), array("q")


class InFlight:
    """Instants, and the requests that were in flight then. Owner: one thread."""

    def __init__(self, logs: Sequence[RequestLog]) -> None:
        self._logs = logs
        self._instants: list[tuple[int, bool]] = []  # when, whether something was done
        self._reached = [0] * len(logs)
        self._found: dict[bool, list[int]] = {False: [], True: []}

    def mark(self, instant: int, *, placebo: bool) -> None:
        """Ask about `instant` (`time.perf_counter_ns`), which must not be before the last."""
        self._instants.append((instant, not placebo))

    def collect(self) -> None:
        """Look through what the threads have handed over."""
        for number, log in enumerate(self._logs):
            while log.chunks:
                starts, ends = log.chunks.popleft()
                self._look(number, starts, ends)

    def _look(self, number: int, starts: array[int], ends: array[int]) -> None:
        reached = self._reached[number]
        while reached < len(self._instants) and self._instants[reached][0] <= ends[-1]:
            instant, real = self._instants[reached]
            index = bisect_right(starts, instant) - 1
            if index >= 0 and ends[index] >= instant:
                self._found[real].append(ends[index] - starts[index])
            reached += 1
        self._reached[number] = reached

    def percentile(self, percent: float, *, placebo: bool) -> int:
        """Of the whole time that those requests took, nanoseconds; 0 where there were none."""
        return exact_percentile(self._found[not placebo], percent)

    def count(self, *, placebo: bool) -> int:
        """How many requests were in flight at such instants."""
        return len(self._found[not placebo])
