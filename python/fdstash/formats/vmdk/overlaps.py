"""That no byte of a file is two bytes of the disk, if one of them is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Region", "overlap"]


class Region(NamedTuple):
    """What an extent line takes of a file."""

    file: int  #: `FileChild.index`
    start: int  #: sectors
    end: int  #: sectors
    writable: bool
    number: int  #: of the extent


def overlap(regions: Iterable[Region]) -> tuple[Region, Region] | None:
    """Two regions that overlap, one of which is written: the first found, in order of number."""
    # The regions that reach furthest, of all and of the RW ones.
    last: Region | None = None
    written: Region | None = None
    for region in sorted(regions):
        if last is None or region.file != last.file:
            last = written = None
        for other in (last if region.writable else None, written):
            if other is not None and region.start < other.end:
                first, second = sorted((region, other), key=lambda each: each.number)
                return first, second
        if last is None or region.end > last.end:
            last = region
        if region.writable and (written is None or region.end > written.end):
            written = region
    return None
