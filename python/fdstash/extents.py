"""Where the bytes of an image are, run by run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from fdstash import needs
from fdstash.datapath import DataPath, Layer, MapRun
from fdstash.formats.base import Kind
from fdstash.hostfile import HostFile

__all__ = ["Extent", "iterate"]


class Extent(NamedTuple):
    """A run of guest bytes of one kind.

    `kind`: ``data``; ``zero``, which reads as zeros (a hole of the host file has a
    file and an offset, and is filled when it is written); ``hole``, which no image of
    the chain has anything for, and reads as zeros; ``compressed``; ``denied``, which can
    be neither read nor written.
    """

    offset: int  #: in the guest's disk, bytes
    length: int  #: bytes
    kind: str
    file: str | None  #: the name of the file that holds the bytes
    file_offset: int | None  #: where in that file, bytes
    depth: int  #: 0: this image; 1: its backing image, and so on


_NAMES = {
    Kind.ZERO: "zero",
    Kind.HOLE: "hole",
    Kind.DENIED: "denied",
    Kind.COMPRESSED: "compressed",
}


#: The files of a graph, and the layer that is looked at, as they are now.
Look = Callable[[], tuple[Sequence[HostFile], Layer]]


def iterate(core: DataPath, look: Look, offset: int, end: int) -> Iterator[Extent]:
    """The extents that cover [offset, end), cut to it; lazily, as asked for."""
    while offset < end:
        with core.reading():
            files, layer = look()
            extent = _extent_at(core, files, layer, offset, end)
        if extent is None:
            return
        yield extent
        offset += extent.length


def _extent_at(
    core: DataPath, files: Sequence[HostFile], top: Layer, offset: int, end: int
) -> Extent | None:
    """The run at `offset` in the first layer that has something there, else in the last."""
    layer: Layer | None = top
    depth = -1
    run: MapRun | None = None
    while layer is not None and offset < layer.size:
        run = _run_at(core, layer, offset, end)
        depth += 1
        if run is None or run.kind != Kind.HOLE:
            break
        end = offset + run.length
        layer = layer.backing
        if layer is not None and layer.stands_in:
            break
    if run is None:
        return None
    if run.kind not in (Kind.DATA, Kind.DATA | Kind.COPY, Kind.COMPRESSED):
        return Extent(offset, run.length, _NAMES[Kind(run.kind)], None, None, depth)
    file = files[run.file]
    if run.kind == Kind.COMPRESSED:
        return Extent(offset, run.length, "compressed", file.name, run.file_offset, depth)
    length, is_data = file.data_run(run.file_offset, run.length)
    return Extent(offset, length, "data" if is_data else "zero", file.name, run.file_offset, depth)


def _run_at(core: DataPath, layer: Layer, offset: int, end: int) -> MapRun | None:
    run = layer.lookup(offset, end - offset)
    while run is not None and run.kind in (Kind.UNKNOWN, Kind.BAD):
        needs.load(core, layer, run)
        run = layer.lookup(offset, end - offset)
    return run
