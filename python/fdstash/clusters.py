"""The cluster tables of one image: loaded on first touch, changed, and written back.

What the core cannot serve by itself ends here. New clusters are filled before their
entries are published, so that a reader sees the old bytes or the new ones. Entries stay
in memory until a flush: data is made durable first, then the entries that refer to it,
so that a power cut leaves at worst clusters that nothing refers to. A cluster that was
given up is used again only once no entry on disk and no request can refer to it.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from fdstash._ffi import check, ffi, lib
from fdstash.datapath import Layer, MapRun
from fdstash.errors import FormatError
from fdstash.formats.base import Kind
from fdstash.formats.tables import TableFormat
from fdstash.hostfile import HostFile

__all__ = ["PIECE", "ClusterMap", "Content", "map_of"]

#: Bytes of decoded tables that an image keeps in memory; 8 bytes a cluster.
PAGE_BYTES = 32 << 20
#: Bytes of the clusters that were decompressed last and are kept; the last one always is.
UNPACKED_BYTES = 2 << 20
#: Bytes of guest data that are in memory at a time, however large the clusters are.
PIECE = 4 << 20
_COPY = int(Kind.DATA | Kind.COPY)

_maps: weakref.WeakValueDictionary[int, ClusterMap] = weakref.WeakValueDictionary()


def map_of(layer: Any) -> ClusterMap:
    """The map whose core layer that is."""
    return _maps[int(ffi.cast("uintptr_t", layer))]


class Content(NamedTuple):
    """The bytes of a request, and those around it."""

    #: `old(n, offset)`: the guest's bytes as they are.
    old: Callable[[int, int], bytes]
    #: `put(file, n, offset)`: writes the next `n` bytes of the request to a file.
    put: Callable[[HostFile, int, int], None]


class _GivenUp(NamedTuple):
    table: int
    offset: int
    clusters: int
    generation: int


class ClusterMap:
    """The tables of one layer. Every call but the constructor is made under `lock`."""

    def __init__(self, image: TableFormat, layer: Layer, files: list[HostFile]) -> None:
        self.lock = threading.RLock()
        self._image = image
        self._layer = layer
        self._files = files
        self._tables = image.tables()
        self._starts = [table.start for table in self._tables]
        self._page_entries = max((table.page_entries for table in self._tables), default=1)
        self._next_evicted = 0
        self._unpacked: dict[tuple[int, int], bytes] = {}
        #: First and last changed entry of pages, by table and page.
        self._changed: dict[tuple[int, int], tuple[int, int]] = {}
        self._given_up: list[_GivenUp] = []  #: since the last write-back
        self._quarantine: list[_GivenUp] = []  #: written back; requests may still use them
        _maps[int(ffi.cast("uintptr_t", layer.handle))] = self

    # -- reading

    def table_at(self, offset: int) -> int:
        """The table that maps the guest offset."""
        return bisect_right(self._starts, offset) - 1

    def load(self, offset: int, length: int, generation: int) -> None:
        """Load the pages of a run that is not loaded; evict others where there are too many."""
        number = self.table_at(offset)
        table, core = self._tables[number], self._layer.tables[number]
        page_bytes = table.cluster * table.page_entries
        first = (offset - table.start) // page_bytes
        last = (offset + length - 1 - table.start) // page_bytes
        size = self._files[table.file].size
        for page in range(first, last + 1):
            if (number, page) not in self._changed:
                # Before, or where all others have changed it would be the new one that goes.
                self._make_room(table.page_entries, generation)
                core.load(page, self._image.load(number, page), size, generation)

    def _make_room(self, page_entries: int, generation: int) -> None:
        tables = self._layer.tables
        excess = sum(table.loaded for table in tables) + 1 - _most_pages(page_entries)
        for _ in tables:
            if excess <= 0:
                return
            table = tables[self._next_evicted % len(tables)]
            self._next_evicted += 1
            excess -= table.evict(excess, generation)

    def decompressed(self, start: int, offset: int) -> bytes:
        """The cluster at guest offset `start`, whose compressed data is at `offset`."""
        number = self.table_at(start)
        table = self._tables[number]
        place = offset - (start - table.start) % table.cluster
        data = self._unpacked.get((number, place))
        if data is None:
            data = self._image.decompress(number, place)
            while self._unpacked and (len(self._unpacked) + 1) * len(data) > UNPACKED_BYTES:
                del self._unpacked[next(iter(self._unpacked))]
            self._unpacked[number, place] = data
        return data

    def bad(self, start: int) -> FormatError:
        """What to say of an entry that makes no sense."""
        number = self.table_at(start)
        table = self._tables[number]
        cluster = (start - table.start) // table.cluster
        return FormatError(
            f"the entry for cluster {cluster} of table {number} (guest offset {start}) lies outside"
            " the file; run a check of the image",
            file=self._files[table.file].name,
            field="cluster table entry",
        )

    # -- writing

    def write_new(self, run: MapRun, content: Content, generation: int) -> int:
        """Give a run of guest bytes new clusters; returns how many bytes that did."""
        start, length, kind = run.offset, run.length, run.kind
        number = self.table_at(start)
        table = self._tables[number]
        first = (start - table.start) // table.cluster
        wanted = (start + length - 1 - table.start) // table.cluster - first + 1
        new = self._image.allocate(number, wanted)
        file = self._files[table.file]
        begin = table.start + first * table.cluster
        end = min(begin + new.clusters * table.cluster, table.start + table.length)
        done_to = min(start + length, end)
        zeros = new.fresh and kind in (Kind.ZERO, Kind.HOLE) and not self._has_backing(begin)
        try:
            if not zeros:
                _copy(file, content.old, begin, start, new.offset - begin)
            content.put(file, done_to - start, new.offset + start - begin)
            if not zeros:
                _copy(file, content.old, done_to, end, new.offset - begin)
        except BaseException:
            # Nothing refers to them, so the next write may have them.
            self._image.free(number, new.offset, new.clusters)
            raise
        self._set(number, first, new.clusters, Kind.DATA, new.offset)
        if kind in (_COPY, Kind.COMPRESSED):
            old = run.file_offset - (start - begin)
            self._given_up.append(_GivenUp(number, old, new.clusters, generation))
        return done_to - start

    def _has_backing(self, start: int) -> bool:
        below = self._layer.backing
        return below is not None and start < below.size

    def zero_whole(self, start: int, length: int, kind: int, generation: int) -> int:
        """Make whole clusters of a run zero by their entries; returns the bytes done.

        0 where the run begins inside a cluster or is shorter than one, or the format
        has no such entries: then bytes have to be written.
        """
        number = self.table_at(start)
        table = self._tables[number]
        within = (start - table.start) % table.cluster
        count = length // table.cluster
        at_end = start + length == table.start + table.length
        if at_end and length % table.cluster:
            count += 1
        if within or not count:
            return 0
        if not table.zero_entries and self._has_backing(start):
            return 0
        first = (start - table.start) // table.cluster
        # A page at a time: a run of holes may be larger than what can be in memory.
        count = min(count, table.page_entries - first % table.page_entries)
        held = self._layer.tables[number].get(first, count)
        becomes = Kind.ZERO if table.zero_entries else Kind.HOLE
        self._set(number, first, count, becomes, 0)
        for old_kind, offset in held:
            if old_kind in (Kind.DATA, _COPY, Kind.COMPRESSED):
                self._given_up.append(_GivenUp(number, offset, 1, generation))
        return min(count * table.cluster, length)

    def to_cluster_end(self, start: int, length: int) -> int:
        """How much of a run lies in the cluster that it begins in."""
        table = self._tables[self.table_at(start)]
        return min(length, table.cluster - (start - table.start) % table.cluster)

    def _set(self, number: int, first: int, count: int, kind: int, offset: int) -> None:
        table, core = self._tables[number], self._layer.tables[number]
        for page, low, high in _by_page(first, count, table.page_entries):
            core.pin(page, pinned=True)
            before = self._changed.get((number, page), (low, high))
            self._changed[number, page] = (min(before[0], low), max(before[1], high))
        self._layer.set_dirty(dirty=True)
        core.set(first, count, kind, offset)

    # -- to disk

    @property
    def crowded(self) -> bool:
        """Whether so many pages have changed that hardly another can be in memory."""
        return len(self._changed) > _most_pages(self._page_entries) // 2

    def write_back(self, generation: int, flush: Callable[[HostFile], None] | None) -> None:
        """Put all changed entries on disk, after the data that they refer to.

        `flush` makes a file durable; None (cache=unsafe): nothing is waited for.
        Raises `ImageIOError`; then what is not on disk is still known to be so.
        """
        if self._changed:
            self._flush_files(flush)
            for (number, page), (low, high) in sorted(self._changed.items()):
                self._store(number, page, low, high)
            if self._image.unlinked:
                self._flush_files(flush)
                self._image.link()
            self._flush_files(flush)
            for number, page in self._changed:
                self._layer.tables[number].pin(page, pinned=False)
            self._changed.clear()
            self._layer.set_dirty(dirty=False)
        self._quarantine += [each._replace(generation=generation) for each in self._given_up]
        self._given_up.clear()
        self.release(generation)

    def release(self, generation: int) -> None:
        """Hand back clusters that neither the disk nor a request refers to."""
        waiting = []
        for each in self._quarantine:
            if each.generation + 2 <= generation:
                self._image.free(each.table, each.offset, each.clusters)
            else:
                waiting.append(each)
        self._quarantine = waiting

    def _store(self, number: int, page: int, low: int, high: int) -> None:
        table = self._tables[number]
        first = page * table.page_entries + low
        order: Literal["big", "little"] = "big" if table.entry.big_endian else "little"
        raw = b"".join(
            self._image.encode(number, kind, offset).to_bytes(table.entry.width, order)
            for kind, offset in self._layer.tables[number].get(first, high - low + 1)
        )
        self._image.store(number, page, low, raw)

    def _flush_files(self, flush: Callable[[HostFile], None] | None) -> None:
        if flush is not None:
            for index in {self._tables[number].file for number, _ in self._changed}:
                flush(self._files[index])


def _most_pages(page_entries: int) -> int:
    return max(8, PAGE_BYTES // (8 * page_entries))


def _copy(file: HostFile, old: Callable[[int, int], bytes], start: int, end: int, by: int) -> None:
    """Write the guest's bytes [start, end) `by` bytes further on in the file."""
    for at in range(start, end, PIECE):
        _write_all(file, old(min(PIECE, end - at), at), at + by)


def _write_all(file: HostFile, data: bytes, offset: int) -> None:
    check(lib.fdstash_file_pwrite(file.handle, data, len(data), offset, 0), file.name, "write")


def _by_page(first: int, count: int, page_entries: int) -> Iterator[tuple[int, int, int]]:
    """Pages of a run of clusters, with the first and the last entry in each."""
    end = first + count
    while first < end:
        page, low = divmod(first, page_entries)
        high = min(page_entries, low + end - first) - 1
        yield page, low, high
        first += high - low + 1
