"""Requests that need the driver: the core says what it met, and goes on once that is seen to.

A request is counted by the gate for as long as it runs here. The order of locks is: the
gate, then a map's lock; nothing under a map's lock enters the gate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from fdstash._ffi import check, ffi, lib
from fdstash.clusters import PIECE, ClusterMap, Content, map_of
from fdstash.datapath import DataPath, Layer, MapRun
from fdstash.formats.base import Kind
from fdstash.hostfile import HostFile

__all__ = ["NEEDS", "flush", "load", "read", "status", "trim", "write", "write_back", "zero"]

#: What the core returns for a request that must be made again here.
NEEDS: int = -lib.FDSTASH_NEEDS
_METADATA: int = lib.FDSTASH_UNALIGNED_WRITES

#: The map of an image, which a reopen may exchange, also for none.
Present = Callable[[], ClusterMap | None]


def read(core: DataPath, iov: Any, offset: int) -> int:
    """As `fdstash_image_preadv`. Raises `FormatError` and `ImageIOError` of the driver."""
    with core.reading():
        return _read(core, iov, offset)


def _read(core: DataPath, iov: Any, offset: int) -> int:
    need = ffi.new("fdstash_need *")
    done = 0
    while True:
        rc: int = lib.fdstash_image_read_on(core.handle, iov, len(iov), offset, done, need)
        if rc != NEEDS:
            return rc
        done = need.done
        clusters = map_of(need.layer)
        with clusters.lock:
            if not _load(core, clusters, need):
                data = clusters.decompressed(need.start, need.offset)
                within = need.start % len(data)
                part = data[within : within + need.length]
                lib.fdstash_iov_fill(iov, len(iov), done, part, len(part))
                done += need.length


def _load(core: DataPath, clusters: ClusterMap, need: Any) -> bool:
    """Load what is not loaded; False where it is something else that is needed."""
    if need.kind == Kind.BAD:
        raise clusters.bad(need.start)
    if need.kind != Kind.UNKNOWN:
        return False
    clusters.load(need.start, need.length, core.generation())
    return True


def load(core: DataPath, layer: Layer, run: MapRun) -> None:
    """What a look at the map of a layer needs: its table. Raises `FormatError`.

    Within `DataPath.reading`.
    """
    clusters = map_of(layer.handle)
    with clusters.lock:
        if run.kind == Kind.BAD:
            raise clusters.bad(run.offset)
        clusters.load(run.offset, run.length, core.generation())


def status(core: DataPath, found: Any, n: int, offset: int) -> int:
    """As `fdstash_image_status_on`, of a `fdstash_status *`. Raises `FormatError`."""
    need = ffi.new("fdstash_need *")
    found = ffi.cast("fdstash_status *", found)
    with core.reading():
        while True:
            rc: int = lib.fdstash_image_status_on(core.handle, n, offset, found, need)
            if rc != NEEDS:
                return rc
            clusters = map_of(need.layer)
            with clusters.lock:
                _load(core, clusters, need)


def _read_bytes(core: DataPath, n: int, offset: int) -> bytes:
    buffer = bytearray(n)
    with ffi.from_buffer("char[]", buffer, require_writable=True) as view:
        check(_read(core, ffi.new("fdstash_iovec[]", [(view, n)]), offset), core.name, "read")
    return bytes(buffer)


class _Change:
    """A request that changes bytes, counted by the gate as one that is not aligned."""

    def __init__(self, core: DataPath, present: Present, flags: int) -> None:
        self.core = core
        self._present = present
        self._fua = bool(flags & lib.FDSTASH_FUA)

    def __enter__(self) -> Self:
        self._ticket = self.core.enter(_METADATA)
        # Asked within the gate, which a reopen that brings another map holds.
        self._clusters = self._present()
        if self._clusters is not None:
            self._clusters.lock.acquire()
        self.durable = self._fua or bool(self.core.flags & lib.FDSTASH_DSYNC)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self.durable and self._clusters is not None:
                # What a reopen has met is a flush's to tell, and no reason to fail a write.
                self._clusters.write_back(self.core.generation(), HostFile.sync)
        finally:
            if self._clusters is not None:
                self._clusters.lock.release()
            self.core.leave(self._ticket, _METADATA)

    @property
    def clusters(self) -> ClusterMap:
        """The map, for a request that has met a table."""
        if self._clusters is None:
            raise AssertionError("only cluster tables need the driver")
        return self._clusters

    def relieve(self) -> None:
        """Let tables go to disk, where a guest that hardly flushes has changed too many."""
        if self.clusters.crowded:
            write_back(self.core, self.clusters, HostFile.sync)

    def renew(self, need: Any, length: int, iov: Any = None) -> int:
        """New clusters for `length` bytes of what is needed: those of `iov`, or zeros."""
        done = need.done
        flags = lib.FDSTASH_FUA if self.durable else 0

        def put(file: HostFile, n: int, offset: int) -> None:
            if iov is None:
                for at in range(0, n, PIECE):
                    part = min(PIECE, n - at)
                    rc = lib.fdstash_file_pwrite(file.handle, bytes(part), part, offset + at, flags)
                    check(rc, file.name, "write")
                return
            rc = lib.fdstash_file_pwrite_from(file.handle, iov, len(iov), done, n, offset, flags)
            check(rc, file.name, "write")

        run = MapRun(need.start, length, need.kind, 0, need.offset)
        content = Content(lambda n, offset: _read_bytes(self.core, n, offset), put)
        return self.clusters.write_new(run, content, self.core.generation())


def write(core: DataPath, present: Present, iov: Any, offset: int, flags: int) -> int:
    """As `fdstash_image_pwritev`, with clusters allocated on the way.

    Like its kin, also where a reopen has exchanged the image for one without tables since.
    """
    need = ffi.new("fdstash_need *")
    done = 0
    with _Change(core, present, flags) as change:
        while True:
            rc: int = lib.fdstash_image_write_on(
                core.handle, iov, len(iov), offset, done, flags, need
            )
            if rc != NEEDS:
                return rc
            done = need.done
            if not _load(core, change.clusters, need):
                done += change.renew(need, need.length, iov)
                change.relieve()


def zero(core: DataPath, present: Present, n: int, offset: int, flags: int) -> int:
    """As `fdstash_image_zero`: by entries where whole clusters are zeroed, else by bytes."""
    need = ffi.new("fdstash_need *")
    done = 0
    with _Change(core, present, flags) as change:
        while True:
            rc: int = lib.fdstash_image_zero_on(core.handle, n, offset, done, flags, need)
            if rc != NEEDS:
                return rc
            done = need.done
            if _load(core, change.clusters, need):
                continue
            part = change.clusters.zero_whole(need.start, need.length, need.kind, core.generation())
            if not part:
                part = change.clusters.to_cluster_end(need.start, need.length)
                if need.kind == Kind.DATA:
                    plain = flags & ~lib.FDSTASH_UNMAP
                    rc = lib.fdstash_image_zero_on(core.handle, part, need.start, 0, plain, need)
                    check(rc, core.name, "zero")
                else:
                    part = change.renew(need, part)
            done += part
            change.relieve()


def trim(core: DataPath, present: Present, n: int, offset: int) -> int:
    """As `fdstash_image_trim`: whole clusters are given up, parts of them stay."""
    need = ffi.new("fdstash_need *")
    done = 0
    with _Change(core, present, 0) as change:
        while True:
            rc: int = lib.fdstash_image_trim_on(core.handle, n, offset, done, need)
            if rc != NEEDS:
                return rc
            done = need.done
            if not _load(core, change.clusters, need):
                part = change.clusters.zero_whole(
                    need.start, need.length, need.kind, core.generation()
                )
                done += part or change.clusters.to_cluster_end(need.start, need.length)
                change.relieve()


def flush(core: DataPath, present: Present) -> None:
    """Entries, then files. Raises what either has met."""
    ticket = core.enter(_METADATA)
    try:
        clusters = present()
        if clusters is not None:
            write_back(core, clusters, HostFile.flush)
    finally:
        core.leave(ticket, _METADATA)
    core.flush_files()


def write_back(core: DataPath, clusters: ClusterMap, flush: Callable[[HostFile], None]) -> None:
    """Put entries on disk: for who holds the gate, or is counted by it."""
    with clusters.lock:
        waits = not core.flags & lib.FDSTASH_NO_FLUSH
        clusters.write_back(core.generation(), flush if waits else None)
