"""Files as a power cut may leave them: what a barrier covered, and any of the rest.

A sector of 512 bytes holds, after a cut, what some prefix of the writes to it has made of it: a
page of the cache reaches the disk as it was at some instant, and whole sectors reach it in any
order. The size of a file is such a thing by itself. What was written beyond the size is lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.write_log import Kind, Record

__all__ = ["SECTOR", "Choice", "Disk", "everything", "random_choice"]

SECTOR = 512
_SIZE = -1
"""What stands for the size where a sector's number is asked for."""

Choice = Callable[[int, int], bool]
"""Whether the record of that index has reached a sector (a number; -1: the size)."""


def everything(record: int, sector: int) -> bool:
    """The power was not cut."""
    return True


def random_choice(rng: random.Random, count: int) -> Choice:
    """Which of `count` records have reached the disk, in one of several ways to choose."""
    share = rng.choice([0.1, 0.5, 0.9])
    kept = {index for index in range(count) if rng.random() < share}
    chosen = rng.randrange(count) if count else 0
    salt = rng.randrange(1 << 30)

    def some_sectors(record: int, sector: int) -> bool:
        return random.Random(f"{salt} {record} {sector}").random() < share

    ways: list[Choice] = [
        lambda record, _: record in kept,
        lambda record, _: record in kept,
        some_sectors,
        lambda record, _: record < chosen,
        lambda record, _: record == chosen,
        lambda record, _: record != chosen,
        lambda record, sector: some_sectors(0, sector) if record == chosen else record in kept,
        lambda record, sector: False,
    ]
    return rng.choice(ways)


class _File:
    """A file's durable bytes, and what was done to it since."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.pending: list[Record] = []
        self.begun: dict[int, int] = {}
        """How many records were pending when a barrier began, by its number."""

    def add(self, record: Record) -> None:
        if record.kind == Kind.SYNC_BEGIN:
            self.begun[record.offset] = len(self.pending)
        elif record.kind == Kind.SYNC_END:
            covered = self.begun.pop(record.offset)
            self.content = self.after(self.pending[:covered], everything)
            del self.pending[:covered]
            self.begun = {key: max(0, n - covered) for key, n in self.begun.items()}
        else:
            self.pending.append(record)

    def after(self, records: Sequence[Record], choice: Choice) -> bytearray:
        """The bytes, where of `records` those that `choice` says have reached the disk."""
        found = bytearray(self.content)
        # A stretch of zeros from a size that was given up, and others, are all writes of sectors.
        effects = list(_effects(records, len(found)))
        last: dict[int, int] = {}
        size = len(found)
        floor = 0
        for index, (record, sectors, size_after) in enumerate(effects):
            for sector in sectors:
                if record.durable or choice(index, sector):
                    last[sector] = index
            if size_after is not None and choice(index, _SIZE):
                size = size_after
            if record.durable:
                floor = max(floor, record.offset + record.length)
        size = max(size, floor)
        longest = max([size, *(after for _, _, after in effects if after is not None)])
        found.extend(bytes(max(0, longest - len(found))))
        for index, (record, sectors, size_after) in enumerate(effects):
            start, data = _bytes_of(record, size_after, len(found))
            for first, end in _runs(sectors, last, index):
                low, high = max(first * SECTOR, start), min(end * SECTOR, start + len(data))
                found[low:high] = data[low - start : high - start]
        del found[size:]
        return found


def _effects(records: Sequence[Record], size: int) -> Iterator[tuple[Record, range, int | None]]:
    """With each record, the sectors that it changes and the size that it gives the file, if any."""
    for record in records:
        end = record.offset + record.length
        before = size
        if record.kind == Kind.SIZE:
            size = record.length
            sectors = range(size // SECTOR, -(-before // SECTOR))
        elif record.kind == Kind.GROW:
            size = max(size, record.length)
            sectors = range(0)
        else:
            if record.kind == Kind.WRITE:
                size = max(size, end)
            sectors = range(record.offset // SECTOR, -(-min(end, size) // SECTOR))
        yield record, sectors, size if size != before else None


def _bytes_of(record: Record, size_after: int | None, longest: int) -> tuple[int, bytes]:
    """Where, and with what, the record overwrites."""
    if record.kind == Kind.WRITE:
        return record.offset, record.data
    if record.kind == Kind.ZERO:
        return record.offset, bytes(record.length)
    if record.kind == Kind.SIZE and size_after is not None:
        return record.length, bytes(max(0, longest - record.length))
    return 0, b""


def _runs(sectors: range, last: Mapping[int, int], index: int) -> Iterator[tuple[int, int]]:
    """Runs (first, end) of the sectors that record `index` is among the writes to reach."""
    first = None
    for sector in sectors:
        if last.get(sector, -1) >= index:
            if first is None:
                first = sector
        elif first is not None:
            yield first, sector
            first = None
    if first is not None:
        yield first, sectors.stop


class Disk:
    """The files of a folder, as a log makes them."""

    def __init__(self, folder: Path) -> None:
        self._files = {
            str(path.relative_to(folder)): _File(path.read_bytes())
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def add(self, record: Record) -> None:
        """The next record of the log."""
        self._files[record.name].add(record)

    @property
    def pending(self) -> int:
        """How many records no barrier has covered yet."""
        return sum(len(file.pending) for file in self._files.values())

    def leave(self, folder: Path, choose: Callable[[int], Choice]) -> None:
        """Write the files into `folder`; `choose(n)` chooses of a file's `n` records."""
        for name, content in self.contents(choose).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def contents(self, choose: Callable[[int], Choice]) -> dict[str, bytes]:
        """The bytes of each file."""
        return {
            name: bytes(file.after(file.pending, choose(len(file.pending))))
            for name, file in self._files.items()
        }
