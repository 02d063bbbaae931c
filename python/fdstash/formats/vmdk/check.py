"""The check of a VMDK: each sparse file for itself, and the lengths of the others."""

from __future__ import annotations

from array import array

from fdstash.formats.base import Kind
from fdstash.formats.check import CheckReport, Repair
from fdstash.formats.vmdk import sesparse
from fdstash.formats.vmdk.check_tables import check_tables
from fdstash.formats.vmdk.cowd_extent import CowdExtent
from fdstash.formats.vmdk.grain_file import GrainFile
from fdstash.formats.vmdk.hosted_extent import HostedExtent
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.references import Overlap, gaps_and_overlaps
from fdstash.formats.vmdk.sesparse import GT_ENTRY
from fdstash.formats.vmdk.sesparse_extent import SeSparseExtent

__all__ = ["check_extent"]


def check_extent(extent: GrainFile, report: CheckReport, repair: Repair) -> None:
    """One sparse extent; only what may be written to is repaired."""
    if isinstance(extent, HostedExtent | CowdExtent):
        able = extent.writable and extent.file.writable
        check_tables(extent, report, repair if able else Repair.NOTHING)
    elif isinstance(extent, SeSparseExtent):
        _check_sesparse(extent, report)


def _check_sesparse(extent: SeSparseExtent, report: CheckReport) -> None:
    """Entries that mean something, in the file, and no grain twice."""
    size, name = extent.file.size, extent.file.name
    total = extent.header.grain_count
    report.total_clusters += total
    report.image_end += size
    starts = array("Q")
    for page in range(extent.header.gt_count):
        with report.telling(name):
            raw = extent.load(page)
            for index, entry in enumerate(array("Q", raw or b"")):
                if not entry:
                    continue
                found = GT_ENTRY.decode(entry, extent.header)
                if found is None or (
                    found[0] == Kind.DATA and found[1] + extent.grain_bytes > size
                ):
                    report.corrupt(
                        f"entry {index} of grain table {page}, {entry:#x}, leads to no grain in "
                        "the file; restore the image from a copy",
                        name,
                        None,
                        "grain table entry",
                    )
                elif found[0] == Kind.DATA:
                    starts.append(found[1] // SECTOR)
    report.allocated_clusters += len(starts)
    for each in gaps_and_overlaps(starts, sesparse.GRAIN, (), 0):
        if isinstance(each, Overlap):
            report.corrupt(
                f"two entries lead to the grain at sector {each.start}; restore the image from a "
                "copy",
                name,
                each.start * SECTOR,
                "grain table entry",
            )
