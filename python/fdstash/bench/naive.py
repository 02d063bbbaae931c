"""What programs do without a way to reopen: close the image, and open it again.

Between the two there is no image, and requests that come then fail. When the open
fails, there is none afterwards either.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any

import fdstash
from fdstash.bench.subject import Subject
from fdstash.bench.target import State
from fdstash.hostfile import FileInfo

__all__ = ["NaiveTarget"]


class NaiveTarget:
    """The same image, reopened by closing it first. A `Target`."""

    closes = True

    def __init__(self, subject: Subject, cache: str) -> None:
        mode = "r+" if subject.writable else "r"
        self.state = State(subject.path, mode, cache)
        self._subject = subject
        self.image: fdstash.Image = subject.open(*self.state)

    def reopen(self, options: Mapping[str, Any]) -> int:
        """Close, then open; what is neither mode, cache nor path is left out."""
        wanted = self.state.after(options)
        start = perf_counter_ns()
        self.image.close()
        self.image = self._subject.open(*wanted)
        took = perf_counter_ns() - start
        self.state = wanted
        return took

    def files(self) -> tuple[FileInfo, ...]:
        """From the image, if there is one."""
        return () if self.image.closed else self.image.files

    def recover(self, state: State) -> None:
        """Open it again, as it was before."""
        self.image.close()
        self.image = self._subject.open(*state)
        self.state = state

    def close(self) -> None:
        """Close what there is."""
        self.image.close()
