"""Another graph, opened beside the present one and switched to: another path or backing."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from fdstash.cache import CacheMode
from fdstash.change import ALL_WRITES, Outcome
from fdstash.datapath import remaining
from fdstash.errors import Error, ImageIOError, ReopenError
from fdstash.file_opener import Source
from fdstash.graph import Graph
from fdstash.stash import FDStash
from fdstash.state import ImageState, image_flags
from fdstash.swap import ROUTES
from fdstash.waiting import call_within, finish_within

__all__ = ["PathChange"]

_STASH = bytes([ROUTES["stash"]])
_PATH = bytes([ROUTES["path"]])
#: How long a reopen waits for requests on the old graph before it leaves them to it.
_GRACE = 1.0  # seconds


class PathChange:
    """A `Change` of the whole graph: the old one stays parsed until the new one serves."""

    def __init__(
        self,
        state: ImageState,
        source: Source,
        *,
        writable: bool,
        cache: CacheMode,
        stash: FDStash | None = None,
        prepare: Callable[[], object] | None = None,
        keep: bool = False,
    ) -> None:
        """`keep`: the image's own files stay the same, only those below are others."""
        self.state = state
        self.source = source
        self.writable = writable
        self.cache = cache
        self.stash = stash
        self.prepare = prepare
        self.keep = keep
        self._old = state.graph
        self._new: Graph | None = None
        self._cache_before = state.cache
        self._switched = False

    @property
    def _graph(self) -> Graph:
        if self._new is None:
            raise AssertionError("acquire comes first")
        return self._new

    def acquire(self, until: float | None) -> None:
        """Open the new graph, on a thread that can be left behind."""

        def open_it() -> Graph:
            return Graph.open(
                self.source,
                writable=self.writable,
                direct=self.cache.direct,
                stash=self.stash,
                beside=self._old,
                keep=self.keep,
            )

        try:
            self._new = call_within(remaining(until), open_it, Graph.close)
        except ImageIOError as error:
            if error.errno != errno.EMFILE:
                raise
            count = len(self._old.files)
            raise ReopenError(
                errno.EMFILE,
                f"{os.strerror(errno.EMFILE)}: another path for an image of {count} files needs"
                f" {4 * count + 1} descriptors, and fdstash.raise_nofile() raises the limit",
                error.filename,
                phase="acquire",
            ) from error

    def prove(self, until: float | None) -> None:
        """The same format and the same size."""
        found, expected = self._graph.format.name, self._old.format.name
        if found != expected:
            raise ReopenError(
                errno.EINVAL,
                f"the new image was recognised as {found}, the open one is {expected}",
                phase="prove",
                file=self._graph.files[0].name,
            )
        size, wanted = self._graph.format.size, self._old.format.size
        if size != wanted:
            raise ReopenError(
                errno.EINVAL,
                f"the new image has {size} bytes, the open one {wanted}: a guest cannot be told",
                phase="prove",
                file=self._graph.files[0].name,
            )

    def classes(self) -> int:
        """Old writes would go to the old files."""
        return ALL_WRITES

    def before_commit(self, until: float | None) -> None:
        """Flush the old graph, run `prepare`, look at the new header again."""
        self.state.write_back()
        # Also of an image that is read-only by now: what it wrote before must be down.
        call_within(remaining(until), self.state.core.sync, lambda _: None)
        if self.prepare is not None:
            self.prepare()
        if self.prepare is not None or self._graph.clusters is not None:
            # What it wrote, or what was just written back where both paths lead to one
            # file, may have changed headers and directories that were parsed.
            self._look_again(until)

    def _look_again(self, until: float | None) -> None:
        graph = self._graph
        try:
            error = call_within(remaining(until), lambda: _looked(graph), lambda _: graph.close())
        except TimeoutError:
            self._new = None  # the thread that hangs has it
            raise
        if error is not None:
            raise error

    def prove_again(self) -> None:
        """Nothing: the switch of a pointer relies on no number."""

    def commit(self) -> None:
        """Switch one pointer."""
        self._switched = True
        self.state.core.switch(self._graph.layer)
        self._adopt(self._graph, self.cache)

    def _adopt(self, graph: Graph, cache: CacheMode) -> None:
        self.state.graph = graph
        self.state.cache = cache
        self.state.core.flags = image_flags(cache, writable=graph.writable)

    def rollback(self) -> None:
        """Switch it back."""
        if not self._switched:
            return
        self.state.core.switch(self._old.layer)
        self._adopt(self._old, self._cache_before)
        # A request that began meanwhile may be reading through the new graph.
        if not self.state.core.grace(_GRACE):
            self.state.retired.append(self._graph)
            self._new = None

    def abandon(self) -> None:
        """Close the new graph."""
        if self._new is not None:
            self._new.close()
            self._new = None

    def settle(self) -> None:
        """The new header is not marked as written to."""
        self.state.marked = False

    def finish(self, until: float | None) -> Outcome:
        """Close the old graph once no request uses it."""
        new = self._graph
        if self.state.core.grace(_GRACE):
            # A close may wait for a server, too.
            with contextlib.suppress(TimeoutError):
                finish_within(remaining(until), self._old.close, lambda _: None)
        else:  # a request hangs on the old files; they stay until it is done
            self.state.retired.append(self._old)
        routes = b"".join(_STASH if file.path is None else _PATH for file in new.files)
        return Outcome(new.files, routes, len(new.files), (), ())


def _looked(graph: Graph) -> Error | None:
    try:
        graph.revalidate(lambda file, n, offset: file.pread(n, offset))
        for image in graph.formats:
            image.check_lengths()
    except Error as error:
        return error
    return None
