"""Where the bytes of an image are, run by run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fdstash.formats.base import Kind
from fdstash.hostfile import HostFile
from fdstash.state import ImageState

__all__ = ["Extent", "iterate"]


class Extent(NamedTuple):
    """A run of guest bytes of one kind.

    `kind`: ``data``; ``zero``, which reads as zeros (a hole of the host file has a
    file and an offset, and is filled when it is written); ``hole``, which reads the
    backing image; ``compressed``; ``denied``, which can be neither read nor written.
    """

    offset: int  #: in the guest's disk, bytes
    length: int  #: bytes
    kind: str
    file: str | None  #: the name of the file that holds the bytes
    file_offset: int | None  #: where in that file, bytes
    depth: int  #: 0: this image; 1: its backing image, and so on


_NAMES = {Kind.ZERO: "zero", Kind.HOLE: "hole", Kind.DENIED: "denied"}


def iterate(state: ImageState, offset: int, end: int) -> Iterator[Extent]:
    """The extents that cover [offset, end), cut to it; lazily, as asked for."""
    state.check_open()
    graph = state.graph
    for segment in graph.format.segments():
        start = max(offset, segment.start)
        stop = min(end, segment.start + segment.length)
        if start >= stop:
            continue
        if segment.kind != Kind.DATA:
            yield Extent(start, stop - start, _NAMES[Kind(segment.kind)], None, None, 0)
            continue
        file = graph.files[segment.file]
        shift = segment.file_offset - segment.start
        yield from _runs(state, file, start, stop, shift)


def _runs(state: ImageState, file: HostFile, start: int, stop: int, shift: int) -> Iterator[Extent]:
    while start < stop:
        state.check_open()
        length, is_data = file.data_run(start + shift, stop - start)
        kind = "data" if is_data else "zero"
        yield Extent(start, length, kind, file.name, start + shift, 0)
        start += length
