"""The two ways in which a reopen changes one image.

Each change goes through the same steps, driven by `fdstash.reopen`: `acquire` and
`prove` may fail and have changed nothing, `commit` may fail and has undone itself,
`rollback` undoes a commit, `finish` or `abandon` ends it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple, Protocol

from fdstash.cache import CacheMode
from fdstash.datapath import Requests, remaining
from fdstash.errors import ReopenError
from fdstash.formats.base import FileChild
from fdstash.graph import Graph, Source, check_writable_format, open_flags
from fdstash.hostfile import HostFile
from fdstash.names import StashNames
from fdstash.stash import FDStash
from fdstash.state import ImageState, image_flags
from fdstash.swap import ROUTES
from fdstash.waiting import call_within

__all__ = ["Change", "Outcome", "PathChange", "SlotChange"]

_ALL_WRITES = int(Requests.WRITES | Requests.UNALIGNED_WRITES)
_STASH = bytes([ROUTES["stash"]])
_PATH = bytes([ROUTES["path"]])
#: How long a reopen waits for requests on the old graph before it leaves them to it.
_GRACE = 1.0


class Outcome(NamedTuple):
    """What `finish` found."""

    files: list[HostFile]
    routes: bytes
    files_changed: int
    close_errors: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...]


class Change(Protocol):
    """One image's part in a reopen. Owner: the thread that reopens."""

    state: ImageState
    prepare: Callable[[], object] | None

    def acquire(self, until: float | None) -> None:
        """Get every descriptor wanted and check it."""

    def prove(self) -> None:
        """Check what the commit relies on: slots, limits, locks, the header."""

    def classes(self) -> int:
        """Which classes of requests the gate must hold."""

    def before_commit(self) -> None:
        """With the gate closed: flush what must be flushed, run `prepare`."""

    def commit(self) -> None:
        """The exchange. If it raises, it has undone itself."""

    def rollback(self) -> None:
        """The exchange back, after a `commit` that succeeded."""

    def abandon(self) -> None:
        """Let go of what was acquired. The image is as it was."""

    def settle(self) -> None:
        """The gate is still closed, nothing can fail any more."""

    def finish(self) -> Outcome:
        """The gate is open: close what is left over."""


class SlotChange:
    """Other descriptions of the same files: another mode, another cache mode."""

    def __init__(
        self,
        state: ImageState,
        *,
        writable: bool,
        cache: CacheMode,
        stash: FDStash | None = None,
        by_path: bool = False,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self.state = state
        self.writable = writable
        self.cache = cache
        self.stash = stash
        self.by_path = by_path
        self.prepare = prepare
        self._graph = state.graph
        self._swap = state.graph.swap
        self._proven = False
        self._before = (state.graph.writable, state.graph.direct, state.cache)
        self._widened = False

    def acquire(self, until: float | None) -> None:
        flags = open_flags(writable=self.writable, direct=self.cache.direct)
        swap = self._swap
        swap.want(flags, by_path=self.by_path)
        if self.stash is not None:
            self._provide(flags)
        try:
            self._proven = swap.acquire(remaining(until))
        except TimeoutError:
            # The thread that hangs has the old one, and disposes of it.
            self._graph.forget_swap()
            self._swap = self._graph.swap
            raise

    def _provide(self, flags: int) -> None:
        names = StashNames(self.stash)
        for file in self._graph.files:
            key = names.key(file.name, file.text)
            if key is None or self.stash is None:
                continue
            access = flags
            if not file.may_write:
                access = open_flags(writable=False, direct=self.cache.direct)
            fd = self.stash.find_owned(key, access)
            if fd >= 0:
                self._swap.provide(file.index, fd)
            elif fd != -errno.EACCES:  # EACCES: none that fits; another route may do
                raise ReopenError(
                    -fd, "dup from the stash", phase="acquire", file=file.name
                )

    def prove(self) -> None:
        if not self._proven:
            self._swap.prove()
        if self.writable and not self._before[0]:
            check_writable_format(self._graph.source, self._graph.format, self._graph.files[0].name)
            if self._graph.source.lock:
                self._graph.locks.widen()
                self._widened = True
            self._graph.format.revalidate(self._read_fresh)

    def _read_fresh(self, file: FileChild, n: int, offset: int) -> bytes:
        return self._swap.pread(file.index, n, offset)

    def classes(self) -> int:
        return self._swap.classes | (_ALL_WRITES if self.prepare is not None else 0)

    def before_commit(self) -> None:
        if self.prepare is not None:
            self.prepare()
            self._graph.format.revalidate(self._read_fresh)

    def commit(self) -> None:
        core = self.state.core
        if self.cache.durable and not self._before[2].durable:
            self._make_durable()
        core.hold_flushes()
        try:
            self._swap.exchange()
        except BaseException:
            self._set(self._before[0], self._before[2])
            raise
        self._set(self.writable, self.cache)

    def _make_durable(self) -> None:
        """A guest that never flushes relies on every write, those before this one too."""
        core, (writable, _direct, cache) = self.state.core, self._before
        core.flags = image_flags(cache._replace(durable=True), writable=writable)
        try:
            core.flush()
        except BaseException:
            core.flags = image_flags(cache, writable=writable)
            raise

    def _set(self, writable: bool, cache: CacheMode) -> None:
        self._graph.writable = writable
        self._graph.direct = cache.direct
        self.state.cache = cache
        self.state.core.flags = image_flags(cache, writable=writable)

    def rollback(self) -> None:
        writable, _direct, cache = self._before
        self._swap.exchange()
        self._set(writable, cache)

    def abandon(self) -> None:
        if self._widened:
            self._graph.locks.narrow()
            self._widened = False
        self._swap.abandon()

    def settle(self) -> None:
        self._swap.settle()

    def finish(self) -> Outcome:
        graph = self._graph
        if self._before[0] != self.writable:
            for file in graph.files:
                file.writable = self.writable and file.may_write
        warnings: tuple[str, ...] = ()
        if self._before[0] and not self.writable and graph.source.lock:
            self.state.marked = False
            if not graph.locks.narrow():
                warnings = ("the write locks could not be dropped and are still held",)
        routes, changed = self._swap.routes(), self._swap.changed
        return Outcome(graph.files, routes, changed, self._swap.finish(), warnings)


class PathChange:
    """Another graph, opened beside the present one: another path."""

    def __init__(
        self,
        state: ImageState,
        source: Source,
        *,
        writable: bool,
        cache: CacheMode,
        stash: FDStash | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self.state = state
        self.source = source
        self.writable = writable
        self.cache = cache
        self.stash = stash
        self.prepare = prepare
        self._old = state.graph
        self._new: Graph | None = None
        self._cache_before = state.cache

    @property
    def _graph(self) -> Graph:
        if self._new is None:
            raise AssertionError("acquire comes first")
        return self._new

    def acquire(self, until: float | None) -> None:
        def open_it() -> Graph:
            return Graph.open(
                self.source,
                writable=self.writable,
                direct=self.cache.direct,
                stash=self.stash,
                beside=self._old,
            )

        self._new = call_within(remaining(until), open_it, Graph.close)

    def prove(self) -> None:
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
        return _ALL_WRITES

    def before_commit(self) -> None:
        if self._old.writable:
            self.state.core.flush()
        if self.prepare is not None:
            self.prepare()
            # What it wrote may have changed the header that was parsed.
            self._graph.format.revalidate(lambda file, n, offset: file.pread(n, offset))

    def commit(self) -> None:
        self.state.core.switch(self._graph.layer)
        self._adopt(self._graph, self.cache)

    def _adopt(self, graph: Graph, cache: CacheMode) -> None:
        self.state.graph = graph
        self.state.cache = cache
        self.state.core.flags = image_flags(cache, writable=graph.writable)

    def rollback(self) -> None:
        self.state.core.switch(self._old.layer)
        self._adopt(self._old, self._cache_before)
        # A request that began meanwhile may be reading through the new graph.
        if not self.state.core.grace(_GRACE):
            self.state.retired.append(self._graph)
            self._new = None

    def abandon(self) -> None:
        if self._new is not None:
            self._new.close()
            self._new = None

    def settle(self) -> None:
        self.state.marked = False

    def finish(self) -> Outcome:
        new = self._graph
        if self.state.core.grace(_GRACE):
            self._old.close()
        else:  # a request hangs on the old files; they stay until it is done
            self.state.retired.append(self._old)
        routes = b"".join(_STASH if file.path is None else _PATH for file in new.files)
        return Outcome(new.files, routes, len(new.files), (), ())
