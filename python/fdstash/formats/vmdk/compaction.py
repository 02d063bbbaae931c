"""Taking back space in a sparse extent: the last grains move into holes, and the file ends earlier.

Copies are durable before entries lead to them, and entries before the file is cut: what
is interrupted leaves space that nothing refers to, as there was before.
"""

from __future__ import annotations

from collections.abc import Sequence

from fdstash.formats.vmdk import grain_directory
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.references import Gap
from fdstash.formats.vmdk.sector_tables import SectorTables

__all__ = ["compact"]


def compact(extent: SectorTables, grains: Sequence[int], gaps: Sequence[Gap]) -> None:
    """Fill the `gaps`, and cut the file behind what is in use.

    `grains` are the sectors at which grains start, in any order; no reference is to
    a gap. For the only user of the file. Raises `ImageIOError`.
    """
    grain = extent.grain_bytes // SECTOR
    slots = [slot for gap in gaps for slot in range(gap.start, gap.end - grain + 1, grain)]
    moves: dict[int, int] = {}
    # The last grain goes into the first hole, for as long as that is before it.
    for source, slot in zip(sorted(grains, reverse=True), slots, strict=False):
        if slot >= source:
            break
        moves[source] = slot
    for source, slot in moves.items():
        data = extent.file.pread(extent.grain_bytes, source * SECTOR)
        extent.file.pwrite(data, slot * SECTOR)
    if moves:
        extent.file.flush()
        _lead_to(extent, moves)
        extent.file.flush()
    ends = [moves.get(each, each) + grain for each in grains]
    for directory in extent.directories:
        step = directory.table_bytes // SECTOR
        ends.append(directory.offset // SECTOR + -(-4 * len(directory.entries) // SECTOR))
        ends.extend(entry + step for entry in directory.entries if entry)
    end = max(extent.entry().first, max(ends, default=0) * SECTOR)
    if end < extent.file.size:
        extent.note_end(end)
        extent.file.truncate(end)


def _lead_to(extent: SectorTables, moves: dict[int, int]) -> None:
    """Change the entries of grains that were moved, in every table."""
    n = 4 * extent.page_entries
    for directory in extent.directories:
        for sector in filter(None, directory.entries):
            entries = grain_directory.decode(extent.file.pread(n, sector * SECTOR))
            if not moves.keys().isdisjoint(entries):
                moved = (moves.get(entry, entry) for entry in entries)
                extent.file.pwrite(grain_directory.encode(moved), sector * SECTOR)
