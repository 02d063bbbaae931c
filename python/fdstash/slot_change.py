"""Other descriptions of the same files: another mode, another cache mode."""

from __future__ import annotations

import errno
from collections.abc import Callable

from fdstash.cache import CacheMode
from fdstash.change import ALL_WRITES, Outcome
from fdstash.datapath import remaining
from fdstash.errors import Error, ReopenError
from fdstash.file_opener import open_flags
from fdstash.formats.base import FileChild
from fdstash.graph import Map, check_writable_format
from fdstash.names import StashNames
from fdstash.stash import FDStash
from fdstash.state import ImageState, image_flags
from fdstash.swap import Swap, SwapError
from fdstash.waiting import call_within, finish_within

__all__ = ["SlotChange"]


class SlotChange:
    """A `Change` that keeps the graph and exchanges the descriptions in its slots.

    `by_path` walks the paths again, and must meet the same files.
    """

    def __init__(
        self,
        state: ImageState,
        *,
        writable: bool,
        cache: CacheMode,
        stash: FDStash | None = None,
        spare: FDStash | None = None,
        by_path: bool = False,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self.state = state
        self.writable = writable
        self.cache = cache
        self.stash = stash
        self.spare = spare
        self.by_path = by_path
        self.prepare = prepare
        self._graph = state.graph
        self._swap: Swap
        self._may_wait = False
        self._committing = False
        self._before = (state.graph.writable, state.cache)
        self._widened = False
        self._fresh: Map | None = None  #: the map that is not in use
        self._map_exchanged = False

    def acquire(self, until: float | None) -> None:
        """A description for each file that needs another one."""
        flags = open_flags(writable=self.writable, direct=self.cache.direct)
        swap = self._swap = self._graph.swap
        try:
            if self._own_descriptions_serve(flags, until):
                return
            swap.want(flags, by_path=self.by_path)
            stash = self.spare if self.stash is None else self.stash
            if stash is not None:
                self._provide(stash, flags)
            self._may_wait = swap.acquire(remaining(until))
        except TimeoutError:
            self._leave_swap()
            raise

    def _own_descriptions_serve(self, flags: int, until: float | None) -> bool:
        """Whether there is a stash to spare, and no need of it: F_SETFL is enough."""
        if self.spare is None or self.stash is not None or self.by_path:
            return False
        self._swap.want_own(flags)
        try:
            self._may_wait = self._swap.acquire(remaining(until))
        except SwapError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return False
        return True

    def _provide(self, stash: FDStash, flags: int) -> None:
        names = StashNames(stash)
        for file in self._graph.files:
            key = names.key(file.name, file.text)
            if key is None:
                continue
            access = flags
            if not file.may_write:
                access = open_flags(writable=False, direct=self.cache.direct)
            fd = stash.find_owned(key, access)
            if fd >= 0:
                self._swap.provide(file.index, fd)
            elif fd != -errno.EACCES:  # EACCES: none that fits; another route may do
                raise ReopenError(-fd, "dup from the stash", phase="acquire", file=file.name)

    def prove(self, until: float | None) -> None:
        """The swap, and on the way to writing the locks and the header."""
        if not self._may_wait:  # else it was part of the acquisition
            self._swap.prove()
        if self.writable and not self._before[0]:
            check_writable_format(self._graph.source, self._graph.format, self._graph.files[0].name)
            if self._graph.source.lock:
                self._graph.locks.widen()
                self._widened = True
            self._look_at_header(until)

    def _look_at_header(self, until: float | None) -> None:
        """Through the new description; on a thread where a server may be waited for."""
        if not self._may_wait:
            self._graph.revalidate(self._read_fresh)
            return
        try:
            error = call_within(remaining(until), self._header_error, self._dispose(self._swap))
        except TimeoutError:
            self._leave_swap()
            raise
        if error is not None:
            raise error

    def _header_error(self) -> Error | None:
        try:
            self._graph.revalidate(self._read_fresh)
        except Error as error:
            return error
        return None

    @staticmethod
    def _dispose(swap: Swap) -> Callable[[object], None]:
        """Drop a swap that a thread was left with, whatever the thread brings."""
        return lambda _: swap.release()

    def _leave_swap(self) -> None:
        """A thread that hangs has the swap, and disposes of it; the image gets another."""
        self._graph.forget_swap()
        del self._swap

    def _read_fresh(self, file: FileChild, n: int, offset: int) -> bytes:
        return self._swap.pread(file.index, n, offset)

    def classes(self) -> int:
        """What the swap says, or all writes where a callable runs or the map is exchanged."""
        # A write between a commit and its rollback would change a map that is dropped.
        held = self.prepare is not None or self._reads_tables_again
        return self._swap.classes | (ALL_WRITES if held else 0)

    @property
    def _reads_tables_again(self) -> bool:
        return self.writable and not self._before[0] and self._graph.clusters is not None

    def before_commit(self, until: float | None) -> None:
        """Run `prepare`, and look whether it left the header as it was."""
        if self._before[0] and (not self.writable or self.prepare is not None):
            # Before the mode goes, and for a callable that reads or copies files.
            self.state.write_back()
        if self.prepare is not None:
            self.prepare()
            self._look_at_header(until)
        if self._reads_tables_again:
            # Tables may have been written to since they were loaded.
            self._fresh = self._graph.new_map()

    def prove_again(self) -> None:
        """Other code of this process may have taken the number of a slot."""
        if not self._may_wait:  # else it could hang with the gate closed
            self._swap.prove()

    def commit(self) -> None:
        """Exchange, with flushes held until the old descriptions were asked."""
        core = self.state.core
        self._committing = True
        if self.cache.durable and not self._before[1].durable:
            self._make_durable()
        core.hold_flushes()
        self._swap.exchange()
        self._exchange_map()
        self._set(self.writable, self.cache)

    def _exchange_map(self) -> None:
        if self._fresh is not None:
            self._fresh = self._graph.exchange_map(self._fresh)
            self.state.core.switch(self._graph.layer)
            self._map_exchanged = not self._map_exchanged

    def _make_durable(self) -> None:
        """A guest that never flushes relies on every write, those before this one too."""
        core, (writable, cache) = self.state.core, self._before
        core.flags = image_flags(cache._replace(durable=True), writable=writable)
        self.state.write_back()
        core.sync()

    def _set(self, writable: bool, cache: CacheMode) -> None:
        self._graph.writable = writable
        self._graph.direct = cache.direct
        self.state.cache = cache
        self.state.core.flags = image_flags(cache, writable=writable)

    def rollback(self) -> None:
        """Exchange again."""
        if not self._committing:
            return
        if self._swap.changed:
            self._swap.exchange()
        if self._map_exchanged:
            self._exchange_map()
        self._set(*self._before)

    def abandon(self) -> None:
        """Give locks and new descriptions up."""
        if self._widened:
            self._graph.locks.narrow()
            self._widened = False
        if hasattr(self, "_swap"):
            self._swap.abandon()
        self._drop_map()

    def _drop_map(self) -> None:
        """The core keeps the layer for as long as a request uses it."""
        if self._fresh is not None:
            self.state.retire_map(self._fresh)
            self._fresh = None

    def settle(self) -> None:
        """Ask the old descriptions for errors."""
        self._swap.settle()

    def finish(self, until: float | None) -> Outcome:
        """Drop locks that are no longer needed, and the old descriptions."""
        graph = self._graph
        self._drop_map()
        if self._before[0] != self.writable:
            for file in graph.files:
                file.writable = self.writable and file.may_write
        warnings: tuple[str, ...] = ()
        if self._before[0] and not self.writable and graph.source.lock:
            self.state.marked = False
            if not graph.locks.narrow():
                warnings = ("the write locks could not be dropped and are still held",)
        routes, changed = self._swap.routes(), self._swap.changed
        return Outcome(graph.files, routes, changed, self._close_old(until), warnings)

    def _close_old(self, until: float | None) -> tuple[tuple[str, int], ...]:
        if not self._may_wait:
            return self._swap.finish()
        try:
            return finish_within(remaining(until), self._swap.finish, self._dispose(self._swap))
        except TimeoutError:  # what it would have said nobody can wait for
            self._leave_swap()
            return ()
