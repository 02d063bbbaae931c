"""`open` and `Image`: the face that users hold."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self

from fdstash import needs
from fdstash import reopen as transaction
from fdstash._ffi import Writes, lib, raise_for
from fdstash.aio import AsyncImage
from fdstash.backing import Backing, backing_at
from fdstash.cache import cache_mode
from fdstash.clusters import ClusterMap
from fdstash.datapath import Requests, deadline
from fdstash.extents import Extent, iterate
from fdstash.file_object import ImageFile
from fdstash.file_opener import Source
from fdstash.graph import Graph
from fdstash.hostfile import FileInfo
from fdstash.limits import Limits, limits_of
from fdstash.names import Resolver
from fdstash.needs import NEEDS
from fdstash.queue import Queue
from fdstash.reading import Reader
from fdstash.report import ReopenReport
from fdstash.requests import check_range, gather
from fdstash.stash import FDStash
from fdstash.state import ImageState

__all__ = ["Image", "open"]

#: What a resize holds. No flush: one in flight would wait for the end of the hold, and it for that.
_READS_AND_WRITES = int(Requests.READS | Requests.WRITES | Requests.UNALIGNED_WRITES)


def open(  # noqa: A001 - the builtin's name, as in io and gzip
    file: str | os.PathLike[str] | int,
    mode: str = "r",
    *,
    format: str | None = None,
    cache: str = "writeback",
    stash: FDStash | None = None,
    resolver: Resolver | None = None,
    lock: bool = True,
    name: str | None = None,
    mark: bool = True,
    backing: str | os.PathLike[str] | Literal[False] | None = None,
    **options: object,
) -> Image:
    """Open a disk image.

    `file` is a path, or a descriptor, of which the image takes a dup; `name` says
    what a descriptor is called, and without it the files that its header names are
    looked up only in the stash. `mode` is ``r`` or ``r+``. `format` None looks at
    the bytes, which never yields a writable raw image. `cache` is one of QEMU's
    five names. `stash` is looked up before the host file system, and keeps all
    that it holds. `resolver` says which other files a header may name: by default
    those beneath its own folder. `lock=False` does without QEMU-compatible locks.
    `mark=False` leaves the header alone when the image is first written to (VMDK's
    CID, by which snapshots see it): for who writes only bytes that are there already.
    `backing` is opened as the image that this one is based on, whatever its header says;
    False opens none, and what only an image below would have reads as zeros.
    `options` are the format's: ``offset`` and ``size`` (bytes) for raw.

    Raises `ImageIOError` (also the builtin of its errno), `LockError`,
    `FormatError`, `RefusedError`, `OptionError`; nothing stays open then.
    """
    writable = transaction.writable_mode(mode)
    wanted = cache_mode(cache)
    if not isinstance(file, int):
        file = os.fsdecode(file)
    below = transaction.backing_path(backing)
    source = Source(file, name, format, options, resolver, lock, mark, below)
    graph = Graph.open(source, writable=writable, direct=wanted.direct, stash=stash)
    try:
        state = ImageState(graph, wanted, graph.files[0].name)
    except BaseException:
        graph.close()
        raise
    return Image(state)


class Image(Reader, Writes):
    """An open disk image; made by `open`.

    Offsets and sizes are bytes. Every method may be called from any thread; reads
    and writes of mapped data run in C without the GIL. After `close`, and in a
    forked child, methods raise `ClosedError`.
    """

    def __init__(self, state: ImageState) -> None:
        super().__init__(state.core, state.name, state.mark)
        self._state = state
        self._aio: AsyncImage | None = None

    # -- what it is

    @property
    def size(self) -> int:
        """Of the guest's disk."""
        self._state.check_open()
        return self._state.core.size

    @property
    def format(self) -> str:
        """The format's name."""
        return self._state.graph.format.name

    @property
    def mode(self) -> str:
        """``r`` or ``r+``."""
        return "r+" if self._state.graph.writable else "r"

    @property
    def cache(self) -> str:
        """The cache mode's name."""
        return self._state.cache.name

    @property
    def closed(self) -> bool:
        """Whether requests are refused."""
        return self._state.closed

    @property
    def backing(self) -> Backing | None:
        """The image that holes read from; None where there is none."""
        self._state.check_open()
        return backing_at(self._state.graph, 0)

    @property
    def format_info(self) -> Mapping[str, object]:
        """What the format has to say beyond the size, as `qemu-img info` does."""
        self._state.check_open()
        return self._state.graph.format.info()

    @property
    def limits(self) -> Limits:
        """Alignments in the present cache mode, and sizes of requests."""
        self._state.check_open()
        return limits_of(self._state)

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """Every host file, as the kernel describes its descriptor now."""
        with self._state.core.reading():
            return tuple(file.info() for file in self._state.graph.files)

    def extents(self, n: int | None = None, offset: int = 0) -> Iterator[Extent]:
        """A lazy iterator over the runs of [offset, offset + n), None: to the end."""
        size = self.size
        check_range(n or 0, offset)
        end = size if n is None else min(size, offset + n)
        state = self._state
        return iterate(state.core, lambda: (state.graph.files, state.graph.layer), offset, end)

    # -- requests

    def zero(self, n: int, offset: int, *, unmap: bool = False, fua: bool = False) -> None:
        """Make [offset, offset + n) read as zeros; `unmap` lets the host free the space."""
        check_range(n, offset)
        if not self._state.marked:
            self._mark(n, offset)
        flags = (lib.FDSTASH_FUA if fua else 0) | (lib.FDSTASH_UNMAP if unmap else 0)
        rc = lib.fdstash_image_zero(self._core, n, offset, flags)
        if rc == NEEDS:
            rc = needs.zero(self._state.core, self._clusters, n, offset, flags)
        if rc < 0:
            self._fail(rc)

    def trim(self, n: int, offset: int) -> None:
        """The bytes are not needed any more; what they read as afterwards is not said."""
        check_range(n, offset)
        if not self._state.marked:
            self._mark(n, offset)
        rc = lib.fdstash_image_trim(self._core, n, offset)
        if rc == NEEDS:
            rc = needs.trim(self._state.core, self._clusters, n, offset)
        if rc < 0:
            self._fail(rc)

    def flush(self) -> None:
        """Make completed writes durable; raises what write-back has met, also before a reopen."""
        rc = lib.fdstash_image_flush(self._core)
        if rc == NEEDS:
            needs.flush(self._state.core, self._clusters)
        elif rc < 0:
            self._fail(rc)

    def resize(self, size: int) -> None:
        """Make the disk `size` bytes long, with reads and writes held meanwhile.

        ENOTSUP where the format cannot, EBADF on an ``r`` image.
        """
        state = self._state
        with state.lock:
            state.check_open()
            if state.busy:
                raise_for(-errno.EDEADLK, state.name, "resize from within a reopen of the image")
            if not state.graph.writable:
                raise_for(-errno.EBADF, state.name, "resize an image that is open read-only")
            state.core.hold(_READS_AND_WRITES, None)
            try:
                state.write_back()
                state.graph.format.resize(size)
                old = state.graph.exchange_map(state.graph.new_map())
                state.core.switch(state.graph.layer)
                state.retire_map(old)
            finally:
                state.core.release()

    def queue(self, depth: int = 64, *, engine: str = "auto", bound: bool = False) -> Queue:
        """A queue for at most `depth` requests at once; `engine` as `Queue.engine` names it.

        ``auto`` moves what is in the page cache at once and all else by io_uring, or by
        threads where that is refused (`fdstash doctor` says). `bound`: promise that the thread
        which submits first is the only one that uses it; the kernel then does less. Where
        another uses or closes it all the same, it goes on without io_uring. Close it when it
        is done.
        """
        self._state.check_open()
        return Queue(self._state, self._mark, depth, engine, bound=bound)

    @property
    def aio(self) -> AsyncImage:
        """The same requests for asyncio: ``await img.aio.pread(...)``."""
        if self._aio is None:
            self._aio = AsyncImage(self._state, self._mark)
        return self._aio

    # -- descriptors

    def reopen(
        self,
        *,
        mode: str | None = None,
        cache: str | None = None,
        path: str | os.PathLike[str] | None = None,
        backing: str | os.PathLike[str] | Literal[False] | None = None,
        stash: FDStash | None = None,
        resolver: Resolver | None = None,
        prepare: Callable[[], object] | None = None,
        timeout: float | None = 30.0,
    ) -> ReopenReport:
        """Change how the image is open, under load: all of its files, or none.

        An option left at None stays as it is. `path` equal to the image's own walks
        the path again and must meet the same file; another `path` must hold the
        same content, which `prepare` can see to: it is called with writes held,
        just before the switch, and may read the image, not write it. `backing` is the
        path of another image to be based on, or False for none, as in `open`; the
        image's own files stay the same ones. Another `path` is based on what its
        header names, unless `backing` says or was last False. `stash` is
        looked at first, and keeps what it holds. `timeout` (seconds, None: no
        limit) bounds opens that hang and requests that do not end.

        Raises `ReopenError`, which names phase and file; the image is as it was.
        """
        state = self._state
        until = deadline(timeout)
        state.begin(until)
        try:
            change = transaction.change_for(
                state, mode, cache, path, backing, stash, resolver, prepare
            )
            return transaction.run((change,), until)[0]
        finally:
            state.end()

    def extract_fds(self, stash: FDStash) -> None:
        """Give `stash` a dup of every descriptor, under its file's name.

        The duplicates share status flags with the image's own, so from now on a
        cache mode is changed by a new description, not by F_SETFL.
        """
        with self._state.lock:
            self._state.check_open()
            self._state.graph.extract_fds(stash)

    # -- the rest

    def as_file(self) -> ImageFile:
        """A file object with a position of its own; closing it leaves the image open."""
        self._state.check_open()
        return ImageFile(self)

    def close(self) -> None:
        """Flush, refuse new requests, wait for those in flight, close. Twice is nothing.

        The image is closed also when this raises what the flush met.
        """
        try:
            self._state.close()
        finally:
            if self._aio is not None:
                self._aio.close()

    def __enter__(self) -> Self:
        self._state.check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is not None and not state.closed:
            state.close_unclosed()

    def __repr__(self) -> str:
        if self.closed:
            return f"<Image {self.name!r} closed>"
        return f"<Image {self.name!r} {self.format} {self.mode} cache={self.cache}>"

    def _pwritev_needs(self, buffers: Sequence[Any], offset: int, flags: int) -> int:
        """What `Writes` leaves to Python, beside `_mark`."""
        with ExitStack() as pinned:
            iov = gather(pinned, buffers, writable=False)
            done = needs.write(self._state.core, self._clusters, iov, offset, flags)
        if done < 0:
            self._fail(done)
        return done

    def _clusters(self) -> ClusterMap | None:
        return self._state.graph.clusters

    def _mark(self, n: int, offset: int) -> None:
        """The format's mark of the first write, as a request that the gate counts."""
        state = self._state
        if n == 0 or n > state.core.size - offset:
            return
        kind = int(Requests.UNALIGNED_WRITES)
        ticket = state.core.enter(kind)
        try:
            with state.mark_lock:
                # Asked here, where a reopen that changes the mode waits for us.
                if state.graph.writable and not state.marked:
                    if state.graph.source.mark:
                        state.graph.format.before_first_write()
                    state.marked = True
        finally:
            state.core.leave(ticket, kind)
