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

    def error(self) -> fdstash.ImageIOError:
        return fdstash.ImageIOError(errno.ENXIO, "there is no image")

    def __getattr__(self, name: str) -> Any:
        raise self.error()


class _Window:
    """The image of the moment, under one name."""

    def __init__(self, image: fdstash.Image) -> None:
        self.now: fdstash.Image | _Gone = image

    def pread(self, n: int, offset: int) -> bytes:
        return self.now.pread(n, offset)

    def preadv(self, buffers: Sequence[Any], offset: int) -> int:
        return self.now.preadv(buffers, offset)

    def pwrite(self, data: Any, offset: int) -> int:
        return self.now.pwrite(data, offset)

    def flush(self) -> None:
        self.now.flush()


class NaiveTarget:
    """The same image, reopened by closing it first. A `Target`."""

    closes = True

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
        self.close()
        instant = perf_counter_ns()
        self._window.now = self._subject.open(*wanted)
        end = perf_counter_ns()
        self.state = wanted
        return Reopened(end - start, instant)

    def files(self) -> tuple[FileInfo, ...]:
        """From the image, if there is one."""
        image = self._window.now
        return () if isinstance(image, _Gone) else image.files

    @property
    def opened(self) -> fdstash.Image:
        """The one of the moment; raises `ImageIOError` where there is none."""
        if isinstance(self._window.now, _Gone):
            raise self._window.now.error()
        return self._window.now

    def recover(self, state: State) -> None:
        """Open it again, as it was before."""
        self.close()
        self._window.now = self._subject.open(*state)
        self.state = state

    def close(self) -> None:
        """Close what there is."""
        image, self._window.now = self._window.now, _Gone()
        if not isinstance(image, _Gone):
            image.close()
