"""The core's image and layer: the data path, its gate, and the switch of layers."""

from __future__ import annotations

import enum
import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from fdstash._ffi import check, ffi, lib
from fdstash.errors import FormatError
from fdstash.hostfile import HostFile

__all__ = ["DataPath", "Layer", "Requests"]


class Requests(enum.IntFlag):
    """Classes of requests that the gate tells apart."""

    READS = lib.FDSTASH_READS
    WRITES = lib.FDSTASH_WRITES  #: aligned to the host page
    UNALIGNED_WRITES = lib.FDSTASH_UNALIGNED_WRITES  #: all others, metadata included
    FLUSHES = lib.FDSTASH_FLUSHES


class Layer:
    """A map, its files and its tables, and the layer that holes fall through to.

    `segments` and `tables` are those of a format; they count from the start of `files`.
    """

    size: int  #: of the guest's disk, bytes

    def __init__(
        self,
        segments: Sequence[Any],
        files: Sequence[HostFile],
        name: str,
        tables: Sequence[Any] = (),
        backing: Layer | None = None,
    ) -> None:
        """Build the core's map. Raises `FormatError` where it would not be one."""
        self.size = sum(segment.length for segment in segments)
        self.backing = backing
        self.stands_in = not files  #: for an image that was left out; all of it is a hole
        made: list[Any] = []
        try:
            made.extend(new_table(table, name) for table in tables)
            self._handle = self._build(segments, files, name, made, backing)
        except BaseException:
            for table in made:
                lib.fdstash_table_free(table)
            raise
        self.tables = tuple(ClusterTable(handle) for handle in made)

    @staticmethod
    def _build(
        segments: Sequence[Any],
        files: Sequence[HostFile],
        name: str,
        tables: Sequence[Any],
        backing: Layer | None,
    ) -> Any:
        array = ffi.new("fdstash_segment[]", len(segments))
        for entry, segment in zip(array, segments, strict=True):
            entry.start = segment.start
            entry.length = segment.length
            entry.file_offset = segment.file_offset
            entry.file = segment.file
            entry.kind = segment.kind | (lib.FDSTASH_READONLY if segment.readonly else 0)
        map_out = ffi.new("fdstash_map **")
        failed = ffi.new("size_t *")
        rc = lib.fdstash_map_new(array, len(segments), map_out, failed)
        if rc == -errno.EINVAL:
            raise FormatError(f"segment {failed[0]} leaves a gap or overlaps", file=name)
        check(rc, name)
        handles = ffi.new("fdstash_file *[]", [file.handle for file in files])
        table_handles = ffi.new("fdstash_table *[]", tables)
        below = ffi.NULL if backing is None else backing.handle
        out = ffi.new("fdstash_layer **")
        rc = lib.fdstash_layer_new(
            map_out[0], handles, len(files), table_handles, len(tables), below, out
        )
        if rc < 0:
            lib.fdstash_map_free(map_out[0])
            check(rc, name)
        return ffi.gc(out[0], lib.fdstash_layer_unref)

    @property
    def handle(self) -> Any:
        """The core's object."""
        return self._handle

    def set_dirty(self, *, dirty: bool) -> None:
        """Whether tables hold entries that are not on disk. Owner."""
        lib.fdstash_layer_set_dirty(self._handle, dirty)

    def lookup(self, offset: int, limit: int) -> MapRun | None:
        """The run at `offset`; None at the end. Within `DataPath.reading`."""
        out = ffi.new("fdstash_segment *")
        if lib.fdstash_layer_lookup(self._handle, offset, limit, out) < 0:
            return None
        kind = out.kind & ~lib.FDSTASH_READONLY
        return MapRun(offset, out.length, kind, out.file, out.file_offset)

    def release(self) -> None:
        """Drop this reference."""
        handle, self._handle = self._handle, None
        if handle is not None:
            ffi.release(handle)


class MapRun(NamedTuple):
    """A run of one kind, contiguous in its file."""

    offset: int
    length: int
    kind: int
    file: int
    file_offset: int


def new_table(table: Any, name: str) -> Any:
    """The core's table for a driver's `Table`; freed by the layer that takes it over."""
    entry = table.entry
    layout = ffi.new("fdstash_entry_layout *")
    layout.width, layout.big_endian = entry.width, entry.big_endian
    layout.rule_count, layout.part_count = len(entry.rules), len(entry.parts)
    for slot, rule in zip(layout.rules, entry.rules, strict=False):
        slot.mask, slot.value, slot.kind = rule.mask, rule.value, rule.kind
    for slot, part in zip(layout.parts, entry.parts, strict=False):
        slot.mask, slot.shift = part.mask, part.shift
    layout.unit, layout.base, layout.first = entry.unit, entry.base, entry.first
    out = ffi.new("fdstash_table **")
    bits = table.cluster.bit_length() - 1
    rc = lib.fdstash_table_new(table.length, bits, table.page_entries, table.file, layout, out)
    check(rc, name, "cluster table")
    return out[0]


class ClusterTable:
    """The core's table, as long as its layer lives. Owner: who holds the map's lock."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def loaded(self) -> int:
        """Pages in memory, those of holes alone not counted."""
        count: int = lib.fdstash_table_loaded(self._handle)
        return count

    def load(self, page: int, raw: bytes | None, file_size: int, generation: int) -> None:
        """Take a page over as it is on disk; None: all holes."""
        data = ffi.NULL if raw is None else ffi.from_buffer(raw)
        size = 0 if raw is None else len(raw)
        check(lib.fdstash_table_load(self._handle, page, data, size, file_size, generation))

    def set(self, cluster: int, count: int, kind: int, offset: int = 0) -> None:
        """Set clusters of loaded pages; data is contiguous from `offset` on."""
        check(lib.fdstash_table_set(self._handle, cluster, count, kind, offset))

    def get(self, cluster: int, count: int) -> list[tuple[int, int]]:
        """Kind and host offset of clusters of loaded pages."""
        out = ffi.new("fdstash_cluster[]", count)
        check(lib.fdstash_table_get(self._handle, cluster, count, out))
        return [(each.kind, each.offset) for each in out]

    def pin(self, page: int, *, pinned: bool) -> None:
        """Keep a page in memory: it has entries that are not on disk."""
        check(lib.fdstash_table_pin(self._handle, page, pinned))

    def evict(self, pages: int, generation: int) -> int:
        """Drop pages that were not read of late; how many."""
        count: int = lib.fdstash_table_evict(self._handle, pages, generation)
        return count


class DataPath:
    """The core's image. Requests: any thread; the rest: the owner."""

    def __init__(self, layer: Layer, flags: int, name: str) -> None:
        """`name`: of the image, for errors."""
        self.name = name
        out = ffi.new("fdstash_image **")
        check(lib.fdstash_image_new(layer.handle, flags, out))
        self._handle = ffi.gc(out[0], lib.fdstash_image_free)
        self.held = 0

    @property
    def handle(self) -> Any:
        """The core's object, for the calls of the hot path."""
        return self._handle

    @property
    def size(self) -> int:
        """Bytes."""
        size: int = lib.fdstash_image_size(self._handle)
        return size

    @property
    def flags(self) -> int:
        """`enum fdstash_image_flags`."""
        flags: int = lib.fdstash_image_flags(self._handle)
        return flags

    @flags.setter
    def flags(self, flags: int) -> None:
        lib.fdstash_image_set_flags(self._handle, flags)

    def in_flight(self) -> int:
        """Requests in flight now."""
        count: int = lib.fdstash_image_in_flight(self._handle)
        return count

    def enter(self, kind: int) -> int:
        """Begin a request of several calls; returns the ticket for `leave`."""
        return check(lib.fdstash_image_enter(self._handle, kind))

    def leave(self, ticket: int, kind: int) -> None:
        """End it."""
        lib.fdstash_image_leave(self._handle, ticket, kind)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A request that only looks: `close` and `grace` wait for it.

        What is asked of a file is asked within: outside, another thread may free it.
        """
        ticket = self.enter(lib.FDSTASH_READS)
        try:
            yield
        finally:
            self.leave(ticket, lib.FDSTASH_READS)

    def hold(self, mask: int, seconds: float | None) -> None:
        """Hold new requests of `mask` and wait for those in flight.

        Raises `TimeoutError` after `seconds`; then nothing is held that was not.
        """
        nanoseconds = -1 if seconds is None else max(0, int(seconds * 1e9))
        # Noted first: an interrupt right after the call must not leave it held.
        self.held |= mask
        if lib.fdstash_image_hold(self._handle, mask, 1, nanoseconds) < 0:
            raise TimeoutError

    def hold_flushes(self) -> None:
        """Let no flush return before `release`: an error may be on its way to it."""
        self.held |= lib.FDSTASH_FLUSHES
        lib.fdstash_image_hold(self._handle, lib.FDSTASH_FLUSHES, 0, 0)

    def release(self) -> None:
        """Let everything go on."""
        if self.held:
            lib.fdstash_image_release(self._handle)
            self.held = 0

    def flush_files(self) -> None:
        """Make completed writes durable, entries of tables aside. Raises `ImageIOError`."""
        check(lib.fdstash_image_flush_files(self._handle), self.name, "flush")

    def generation(self) -> int:
        """Of requests: what was out of reach in one is in nobody's hands two later."""
        count: int = lib.fdstash_image_generation(self._handle)
        return count

    def sync(self) -> None:
        """As `flush`, for a reopen: the next `flush` returns the error as well."""
        check(lib.fdstash_image_sync(self._handle), self.name, "flush")

    def switch(self, layer: Layer) -> None:
        """Publish another layer. The old one must be kept until `grace` says True."""
        old = lib.fdstash_image_switch(self._handle, layer.handle)
        # The graph that made the old layer holds a reference of its own.
        lib.fdstash_layer_unref(old)

    def grace(self, seconds: float) -> bool:
        """Wait until no request can still be using a former layer."""
        return bool(lib.fdstash_image_grace(self._handle, int(seconds * 1e9)) == 0)

    def close(self) -> None:
        """Refuse new requests, wait for those in flight, and let go of the layer."""
        lib.fdstash_image_close(self._handle)


def deadline(timeout: float | None) -> float | None:
    """The moment (`time.monotonic`) at which `timeout` seconds are over."""
    return None if timeout is None else time.monotonic() + timeout


def remaining(until: float | None) -> float | None:
    """Seconds left until then, at least 0."""
    return None if until is None else max(0.0, until - time.monotonic())
