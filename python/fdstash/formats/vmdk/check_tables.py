"""The check of a KDMV or COWD extent: directories, tables, grains, and their repair."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import pairwise

from fdstash.formats.check import CheckReport, Repair
from fdstash.formats.vmdk import compaction, grain_directory
from fdstash.formats.vmdk.cowd_extent import CowdExtent
from fdstash.formats.vmdk.hosted_extent import HostedExtent
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.references import Gap, gaps_and_overlaps

__all__ = ["check_tables"]

_RESTORE = "restore the image from a copy, or copy what can be read with 'fdstash convert'"


def check_tables(extent: HostedExtent | CowdExtent, report: CheckReport, repair: Repair) -> None:
    """Look at every table, and at every grain by its entry; put right what `repair` says."""
    _Check(extent, report, repair).run()


class _Check:
    def __init__(
        self, extent: HostedExtent | CowdExtent, report: CheckReport, repair: Repair
    ) -> None:
        self.extent = extent
        self.file = extent.file
        self.name = extent.file.name
        self.report = report
        self.repair = repair
        self.grain = extent.grain_bytes // SECTOR
        self.size = extent.file.size
        self.first = extent.entry().first // SECTOR
        self.pages = -(-extent.capacity // (extent.grain_bytes * extent.page_entries))
        self.compressed = not extent.writable  #: then a grain may be as short as a sector
        self.grains = array("I")  #: where each grain that is there starts, sectors
        self.sound = True  #: whether every reference could be followed

    def run(self) -> None:
        report = self.report
        report.total_clusters += -(-self.extent.capacity // self.extent.grain_bytes)
        wrong = report.corruptions
        for page in range(self.pages):
            self._page(page)
        self._look_at_space()
        if report.corruptions == wrong:
            self._clear_unclean()

    # -- tables

    def _page(self, page: int) -> None:
        tables = [self._table(number, page) for number in range(len(self.extent.directories))]
        if len(tables) == 2 and tables[0] != tables[1]:
            self._differ(page, tables)
        found = [table for table in tables if table is not None]
        if found:
            self._entries(page, found[0])

    def _table(self, number: int, page: int) -> bytes | None:
        """The table's bytes; None where there is none, or none that can be read."""
        directory = self.extent.directories[number]
        sector = directory.entries[page]
        if not sector:
            return None
        n = 4 * self.extent.page_entries
        if sector < self.extent.first_table or sector * SECTOR + n > self.size:
            where = "in the header" if sector < self.extent.first_table else "not in the file"
            self._corrupt(
                f"grain table {page} at sector {sector} is {where}; {_RESTORE}",
                directory.offset + 4 * page,
                f"{directory.field} entry",
            )
            return None
        return self.file.pread(n, sector * SECTOR)

    def _differ(self, page: int, tables: list[bytes | None]) -> None:
        first, second = tables
        one, other = self.extent.directories[:2]
        if first is None or second is None:
            self._corrupt(
                f"only one of the two directories has a grain table {page}; {_RESTORE}",
                other.offset + 4 * page,
                f"{other.field} entry",
            )
            return
        entries = list(
            zip(grain_directory.decode(first), grain_directory.decode(second), strict=True)
        )
        differing = [index for index, (a, b) in enumerate(entries) if a != b]
        place = other.entries[page] * SECTOR
        # Each is judged for itself: an entry that leads nowhere is not the true one.
        judged = [a if self._leads_somewhere(a) else b for a, b in entries]
        fixed = self.repair is Repair.ALL and all(map(self._leads_somewhere, judged))
        if fixed:
            # The first copy last: what it says is what is read, until then.
            raw = grain_directory.encode(judged)
            self.file.pwrite(raw, place)
            self.file.pwrite(raw, one.entries[page] * SECTOR)
            tables[0] = raw
        # What only the copy refers to must not be taken for free.
        self.sound = self.sound and fixed
        self.report.corrupt(
            f"{len(differing)} entries of grain table {page} differ from its redundant copy, the "
            f"first for grain {page * self.extent.page_entries + differing[0]}; a repair makes "
            "them agree",
            self.name,
            place + 4 * differing[0],
            "grain table entry",
            fixed=fixed,
        )

    def _leads_somewhere(self, entry: int) -> bool:
        if entry == 0 or (entry == 1 and self.extent.has_zero_entries):
            return True
        shortest = 1 if self.compressed else self.grain
        return self.first <= entry and (entry + shortest) * SECTOR <= self.size

    def _entries(self, page: int, raw: bytes) -> None:
        entries = grain_directory.decode(raw)
        least = 1 if self.extent.has_zero_entries else 0
        there = array("I", (entry for entry in entries if entry > least))
        if not there:
            return
        if not (self._leads_somewhere(max(there)) and self._leads_somewhere(min(there))):
            sector = self.extent.directories[0].entries[page]
            for index, entry in enumerate(entries):
                if not self._leads_somewhere(entry):
                    self._corrupt(
                        f"the entry for grain {page * self.extent.page_entries + index} leads to "
                        f"sector {entry}, which is no place for a grain; {_RESTORE}",
                        sector * SECTOR + 4 * index,
                        "grain table entry",
                    )
            there = array("I", filter(self._leads_somewhere, there))
        if self.compressed:
            self._unpack(page, entries)
            self.report.compressed_clusters += len(there)
        self.report.allocated_clusters += len(there)
        self.report.fragmented_clusters += sum(b != a + self.grain for a, b in pairwise(there))
        self.grains.extend(there)

    def _unpack(self, page: int, entries: array[int]) -> None:
        """Every grain of a stream, which also looks at its marker."""
        if not isinstance(self.extent, HostedExtent):
            return
        for index, entry in enumerate(entries):
            if entry > 1 and self._leads_somewhere(entry):
                with self.report.telling(self.name):
                    grain = page * self.extent.page_entries + index
                    self.extent.check_grain(grain, entry * SECTOR)

    # -- space

    def _metadata(self) -> Iterator[tuple[int, int]]:
        """Sectors of headers, directories and tables."""
        yield 0, self.first
        for directory in self.extent.directories:
            start = directory.offset // SECTOR
            yield start, start + -(-4 * len(directory.entries) // SECTOR)
            step = directory.table_bytes // SECTOR
            yield from ((entry, entry + step) for entry in directory.entries if entry)

    def _look_at_space(self) -> None:
        if self.compressed:
            self.report.image_end += self.size
            return
        gaps = []
        for found in gaps_and_overlaps(
            self.grains, self.grain, self._metadata(), self.size // SECTOR
        ):
            if not isinstance(found, Gap):
                self._corrupt(
                    f"what starts at sector {found.start} is in use for something else, up to "
                    f"sector {found.end}; writing to one changes the other: {_RESTORE}",
                    found.start * SECTOR,
                    "grain table entry",
                )
            elif found.end - found.start >= self.grain:
                gaps.append(found)
        self.report.image_end += (
            gaps[-1].start * SECTOR if gaps and gaps[-1].end == self.size // SECTOR else self.size
        )
        # Where a reference could not be followed, nothing is known to be free.
        fixed = bool(gaps) and self.sound and self.repair is not Repair.NOTHING
        if fixed:
            compaction.compact(self.extent, self.grains, gaps)
        for gap in gaps:
            count = (gap.end - gap.start) // self.grain
            self.report.leak(
                count,
                f"{count} grains at sector {gap.start} are in no table; a repair takes them back",
                self.name,
                gap.start * SECTOR,
                fixed=fixed,
            )

    def _clear_unclean(self) -> None:
        place, length = self.extent.unclean_place
        if self.extent.header.unclean:
            fixed = self.repair is not Repair.NOTHING
            if fixed:
                self.file.pwrite(bytes(length), place)
            self.report.note(
                "the extent was not closed by the program that wrote to it last",
                self.name,
                place,
                "uncleanShutdown",
                fixed=fixed,
            )

    def _corrupt(self, message: str, offset: int, field: str) -> None:
        self.sound = False
        self.report.corrupt(message, self.name, offset, field)
