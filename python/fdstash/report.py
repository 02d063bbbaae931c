"""What a reopen tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fdstash.hostfile import HostFile
from fdstash.swap import ROUTE_NAMES

__all__ = ["PHASES", "ReopenReport"]

#: In order. `acquire` opens and checks; `prove` asks what the commit relies on, the
#: locks and the format's header; `gate` waits for requests; `prepare` flushes an old
#: graph and runs the caller's callable; `commit` exchanges; `release` asks and closes
#: the old descriptions.
PHASES = ("acquire", "prove", "gate", "prepare", "commit", "release")


class ReopenReport:
    """One reopen that succeeded.

    `requests_in_flight`: how many there were when it committed. `files_changed`:
    how many files have another description or other flags. `close_errors`: what
    closing the old descriptions said, as (file, errno). `warnings`: what did not
    go as it should and cost nothing.
    """

    __slots__ = (
        "_files",
        "_phases",
        "_routes",
        "close_errors",
        "files_changed",
        "requests_in_flight",
        "warnings",
    )

    def __init__(
        self,
        *,
        files: Sequence[HostFile],
        routes: bytes,
        phases: Sequence[int],
        requests_in_flight: int,
        files_changed: int,
        close_errors: tuple[tuple[str, int], ...],
        warnings: tuple[str, ...],
    ) -> None:
        self._files = files
        self._routes = routes
        self._phases = phases
        self.requests_in_flight = requests_in_flight
        self.files_changed = files_changed
        self.close_errors = close_errors
        self.warnings = warnings

    @property
    def routes(self) -> Mapping[str, str]:
        """By file name: ``keep``, ``setfl``, ``stash``, ``proc`` or ``path``."""
        return {
            file.name: ROUTE_NAMES[route]
            for file, route in zip(self._files, self._routes, strict=True)
        }

    @property
    def phases(self) -> Mapping[str, int]:
        """Nanoseconds for each of `PHASES`."""
        times = self._phases
        return MappingProxyType({name: times[i + 1] - times[i] for i, name in enumerate(PHASES)})

    @property
    def total_ns(self) -> int:
        """Nanoseconds from the call to its end."""
        return self._phases[-1] - self._phases[0]

    def __repr__(self) -> str:
        routes = ", ".join(sorted(set(self.routes.values())))
        return (
            f"<ReopenReport {self.files_changed} of {len(self._files)} files changed"
            f" ({routes}) in {self.total_ns / 1000:.1f} us>"
        )
