"""What an open image consists of: shared by the face that users hold and a reopen."""

from __future__ import annotations

import atexit
import errno
import os
import threading
import warnings
from collections.abc import Callable

from fdstash import needs
from fdstash._ffi import ffi, lib
from fdstash.cache import CacheMode
from fdstash.datapath import DataPath, remaining
from fdstash.errors import ClosedError, Error, ImageIOError, ReopenError
from fdstash.graph import Graph, Map
from fdstash.hostfile import HostFile

__all__ = ["ImageState", "image_flags"]

#: Every open image of this process. Held here, so that of an image that nobody closed, and that
#: is garbage in a cycle, the core's objects are not freed before its `__del__` closes them.
_live: set[ImageState] = set()


def image_flags(cache: CacheMode, *, writable: bool) -> int:
    """The core's flags (`enum fdstash_image_flags`) for a mode and a cache mode."""
    flags = lib.FDSTASH_WRITABLE if writable else 0
    if cache.durable:
        flags |= lib.FDSTASH_DSYNC
    if cache.ignores_flush:
        flags |= lib.FDSTASH_NO_FLUSH
    return flags


class ImageState:
    """An open image without its face.

    `lock` is held by whoever reopens, resizes or closes; requests need no lock.
    `retired` are graphs that a request may still be using.
    """

    def __init__(self, graph: Graph, cache: CacheMode, name: str) -> None:
        self.graph = graph
        self.cache = cache
        self.name = name
        self.core = DataPath(graph.layer, image_flags(cache, writable=graph.writable), name)
        self.lock = threading.RLock()
        self.retired: list[Graph] = []
        self.retired_maps: list[Map] = []
        self.closed = False
        self.busy = False
        #: `marked`, where `Writes` looks at it without Python.
        self.mark = ffi.new("uint8_t *")
        self.mark_lock = threading.Lock()
        _live.add(self)

    @property
    def marked(self) -> bool:
        """Whether the format has marked its header as written to."""
        return bool(self.mark[0])

    @marked.setter
    def marked(self, marked: bool) -> None:
        self.mark[0] = marked
        lib.fdstash_image_set_marked(self.core.handle, marked)

    def check_open(self) -> None:
        """Raises `ClosedError`."""
        if self.closed:
            raise ClosedError(f"the image {self.name!r} is closed")

    def begin(self, until: float | None) -> None:
        """Take the image for a reopen, by then (`time.monotonic`) at the latest.

        Raises `ReopenError`: ETIMEDOUT, or EDEADLK from within a reopen of its own.
        """
        if not self.lock.acquire(blocking=False):
            left = remaining(until)
            if not self.lock.acquire(timeout=-1 if left is None else left):
                raise ReopenError(
                    errno.ETIMEDOUT, "another reopen is under way", phase="acquire", file=self.name
                )
        if self.busy or self.closed:
            self.lock.release()
            self.check_open()
            raise ReopenError(
                errno.EDEADLK,
                "a reopen cannot be made from within a reopen of the same image",
                phase="acquire",
                file=self.name,
            )
        if self.retired or self.retired_maps:
            self.sweep()
        self.busy = True

    def end(self) -> None:
        """Let it go, and every request too: an interrupt may have come anywhere."""
        self.core.release()
        self.busy = False
        self.lock.release()

    def write_back(self) -> None:
        """Put the entries of cluster tables on disk. Raises `ImageIOError`.

        What went wrong the next `flush` raises as well: this is not of a request.
        """
        if self.graph.clusters is not None:
            needs.write_back(self.core, self.graph.clusters, HostFile.sync)

    def close(self) -> None:
        """Flush, refuse requests, wait for those in flight, close every descriptor.

        The image is closed whatever happens; the first error is raised then.
        """
        with self.lock:
            if self.closed:
                return
            if self.busy:
                raise ImageIOError(
                    errno.EDEADLK, "an image cannot be closed from within its own reopen", self.name
                )
            # Also of an image that is read-only by now.
            error = _first_error(self.write_back, self.core.flush_files)
            self.closed = True
            _live.discard(self)
            self.core.close()
            # What writes that were let in before that have allocated.
            error = error or _first_error(self.write_back)
            for graph in (self.graph, *self.retired):
                graph.close()
            for former in self.retired_maps:
                former.layer.release()
            self.retired, self.retired_maps = [], []
        if error is not None:
            raise error

    def close_unclosed(self) -> None:
        """Close what nobody has closed, and say so."""
        try:
            warnings.warn(
                f"unclosed image {self.name!r}", ResourceWarning, stacklevel=3, source=self
            )
        finally:  # the warning may be an error
            self.close()

    def retire_map(self, former: Map) -> None:
        """Drop a map that requests may still be looking at."""
        if self.core.grace(0):
            former.layer.release()
        else:
            self.retired_maps.append(former)

    def sweep(self) -> None:
        """Close retired graphs that no request can be using any more."""
        if (self.retired or self.retired_maps) and self.core.grace(0):
            for graph in self.retired:
                graph.close()
            for former in self.retired_maps:
                former.layer.release()
            self.retired, self.retired_maps = [], []


def _first_error(*steps: Callable[[], None]) -> Error | None:
    error: Error | None = None
    for step in steps:
        try:
            step()
        except Error as failed:
            error = error or failed
    return error


def _in_forked_child() -> None:
    # The core has closed the descriptors. Another thread of the parent may have
    # held a lock, and is not here to let it go.
    for state in list(_live):
        state.closed = True
        state.lock = threading.RLock()
    _live.clear()


os.register_at_fork(after_in_child=_in_forked_child)


@atexit.register
def _close_all() -> None:
    """At the end of the interpreter, before it frees what an image consists of in any order."""
    for state in list(_live):
        # Held by a daemon thread it would be held to the last.
        if state.lock.acquire(blocking=False):
            try:
                state.close_unclosed()
            finally:
                state.lock.release()
