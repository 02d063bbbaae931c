"""What programs do without a way to reopen: close the image, and open it again.

Between the two there is no image, and requests that come then fail. When the open
fails, there is none afterwards either.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import Any

import fdstash
from fdstash.bench.subject import Subject
from fdstash.bench.target import Reopened, State
from fdstash.hostfile import FileInfo

__all__ = ["NaiveTarget"]


class _Gone:
    """Stands where no image is."""

    def __getattr__(self, name: str) -> Any:
        raise fdstash.ImageIOError(errno.ENXIO, "there is no image")


class _Window:
    """The image of the moment, under one name."""

    def __init__(self, image: fdstash.Image) -> None:
        self.now: fdstash.Image | _Gone = image

    def pread(self, n: int, offset: int) -> bytes:
        return self.now.pread(n, offset)  # type: ignore[no-any-return]

    def preadv(self, buffers: Sequence[Any], offset: int) -> int:
        return self.now.preadv(buffers, offset)  # type: ignore[no-any-return]

    def pwrite(self, data: Any, offset: int) -> int:
        return self.now.pwrite(data, offset)  # type: ignore[no-any-return]

    def flush(self) -> None:
        self.now.flush()


class NaiveTarget:
    """The same image, reopened by closing it first. A `Target`."""

    def __init__(self, subject: Subject, cache: str) -> None:
        mode = "r+" if subject.writable else "r"
        self.state = State(subject.path, mode, cache)
        self._subject = subject
        self._window = _Window(subject.open(*self.state))

    @property
    def image(self) -> _Window:
        """What the load uses."""
        return self._window

    def reopen(self, options: Mapping[str, Any]) -> Reopened:
        """Close, then open; what is neither mode, cache nor path is left out."""
        wanted = self.state.after(options)
        start = perf_counter_ns()
        image, self._window.now = self._window.now, _Gone()
        image.close()
        instant = perf_counter_ns()
        self._window.now = self._subject.open(*wanted)
        end = perf_counter_ns()
        self.state = wanted
        return Reopened(end - start, instant)

    def files(self) -> tuple[FileInfo, ...]:
        """From the image, if there is one."""
        image = self._window.now
        return () if isinstance(image, _Gone) else image.files

    def recover(self) -> None:
        """Open it again, as it was before."""
        if not isinstance(self._window.now, _Gone):
            self._window.now.close()
        self._window.now = self._subject.open(*self.state)

    def close(self) -> None:
        """Close what there is."""
        if not isinstance(self._window.now, _Gone):
            self._window.now.close()
