"""One image's part in a reopen: the steps that `fdstash.reopen` drives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from fdstash.datapath import Requests
from fdstash.hostfile import HostFile
from fdstash.state import ImageState

__all__ = ["ALL_WRITES", "Change", "Outcome"]

#: What a change that makes old writes wrong holds.
ALL_WRITES = int(Requests.WRITES | Requests.UNALIGNED_WRITES)


class Outcome(NamedTuple):
    """What `finish` found."""

    files: list[HostFile]
    routes: bytes
    files_changed: int
    close_errors: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...]


class Change(Protocol):
    """One image's change. Owner: the thread that reopens, under the image's lock.

    `acquire`, `prove` and `before_commit` may fail and have changed nothing;
    `commit` may fail; `rollback` undoes whatever part of a commit was done.
    """

    state: ImageState
    prepare: Callable[[], object] | None

    def acquire(self, until: float | None) -> None:
        """Get every descriptor wanted and check it."""

    def prove(self, until: float | None) -> None:
        """Check what the commit relies on: slots, limits, locks, the header."""

    def classes(self) -> int:
        """Which classes of requests the gate must hold."""

    def before_commit(self, until: float | None) -> None:
        """With the gate closed: flush what must be flushed, run `prepare`."""

    def prove_again(self) -> None:
        """Where much may have happened since `prove`."""

    def commit(self) -> None:
        """The exchange."""

    def rollback(self) -> None:
        """The exchange back; does nothing where nothing was exchanged."""

    def abandon(self) -> None:
        """Let go of what was acquired. The image is as it was."""

    def settle(self) -> None:
        """All images have committed, the gate is still closed."""

    def finish(self, until: float | None) -> Outcome:
        """The gate is open: close what is left over."""
