"""Options of nodes, as `schema` has let them through, in the shape that the rest works with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fdstash.cache import CACHE_MODES, CacheMode
from fdstash.monitor.errors import QmpError

__all__ = ["Caching", "FileOptions", "ImageOptions", "Reference", "check_name", "names_in", "parse"]

_FILE_DRIVERS = ("file", "host_device")
_WELL_FORMED = re.compile(r"[A-Za-z][-A-Za-z0-9._]*")
_MAX_NAME = 31


def check_name(name: str) -> None:
    """Raises `QmpError` unless a node may be called so; QEMU's rule."""
    if not _WELL_FORMED.fullmatch(name):
        raise QmpError(f"Invalid node-name: '{name[:64]}'")
    if len(name) > _MAX_NAME:
        raise QmpError(f"Node name '{name[:64]}' is longer than {_MAX_NAME} characters")


#: By `Caching.direct`, `Caching.no_flush` and whether each write is durable.
_MODES = {
    (mode.direct, mode.ignores_flush, durable): mode.name
    for mode in CACHE_MODES.values()
    for durable in (False, True)
    if mode.ignores_flush or mode.durable == durable
}


class Caching(NamedTuple):
    """The cache mode in QEMU's words."""

    direct: bool = False
    no_flush: bool = False

    def mode(self, *, durable: bool = False) -> str:
        """The name of that cache mode. `durable`: each write is, which these words do not say."""
        mode = _MODES.get((self.direct, self.no_flush, durable))
        if mode is None:
            raise QmpError(
                "Cache options direct and no-flush exclude each other: what avoids the host's page"
                " cache is not made faster by leaving flushes out"
            )
        return mode

    @classmethod
    def of(cls, mode: CacheMode) -> Caching:
        """What `mode` is in these words."""
        return cls(mode.direct, mode.ignores_flush)


class FileOptions(NamedTuple):
    """A file."""

    filename: str
    driver: str = "file"
    node_name: str | None = None
    cache: Caching | None = None
    read_only: bool | None = None
    auto_read_only: bool = False
    locking: bool = True


#: Options of a new node, or the name of one that is there.
Reference = FileOptions | str


@dataclass(frozen=True)
class ImageOptions:
    """An image in a file, or in many."""

    driver: str
    file: Reference
    node_name: str | None = None
    cache: Caching | None = None
    read_only: bool | None = None
    auto_read_only: bool = False
    extents: tuple[Reference, ...] = ()
    backing: ImageOptions | str | Literal[False] | None = None  #: False: null was given
    format_options: Mapping[str, object] = field(default_factory=dict)

    def new_parts(self) -> Iterator[tuple[str, FileOptions | ImageOptions]]:
        """What options make, and do not only refer to: each with its role as a child."""
        extents = ((f"extents.{number}", each) for number, each in enumerate(self.extents))
        for role, part in (("file", self.file), *extents, ("backing", self.backing)):
            if part and not isinstance(part, str):
                yield role, part


def names_in(options: FileOptions | ImageOptions) -> Iterator[str]:
    """What options call the node that they are of, and its parts."""
    if options.node_name is not None:
        yield options.node_name
    if isinstance(options, ImageOptions):
        for _, part in options.new_parts():
            yield from names_in(part)


def parse(given: Mapping[str, Any]) -> FileOptions | ImageOptions:
    """`BlockdevOptions` in our shape."""
    driver, name = given["driver"], given.get("node-name")
    cache = _caching(given.get("cache"))
    read_only, auto_read_only = given.get("read-only"), given.get("auto-read-only", False)
    if driver in _FILE_DRIVERS:
        locking = given.get("locking", "auto") != "off"
        return FileOptions(
            given["filename"], driver, name, cache, read_only, auto_read_only, locking
        )
    backing = given.get("backing")
    if backing is None and "backing" in given:
        backing = False
    if isinstance(backing, dict):
        backing = parse(backing)
        if isinstance(backing, FileOptions):
            raise QmpError("Parameter 'backing' expects an image, not a file")
    return ImageOptions(
        driver=driver,
        file=_reference(given["file"], driver),
        node_name=name,
        cache=cache,
        read_only=read_only,
        auto_read_only=auto_read_only,
        extents=tuple(_reference(each, driver) for each in given.get("extents", ())),
        backing=backing,
        format_options={each: given[each] for each in ("offset", "size") if each in given},
    )


def _reference(given: Mapping[str, Any] | str, driver: str) -> Reference:
    if isinstance(given, str):
        return given
    parsed = parse(given)
    if isinstance(parsed, ImageOptions):
        raise QmpError(f"Driver '{driver}' reads from files: the driver of 'file' must be 'file'")
    return parsed


def _caching(given: Mapping[str, bool] | None) -> Caching | None:
    if given is None:
        return None
    return Caching(given.get("direct", False), given.get("no-flush", False))
