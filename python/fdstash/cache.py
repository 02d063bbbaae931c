"""QEMU's five cache modes, and what each asks of descriptors, writes and flushes."""

from __future__ import annotations

from typing import NamedTuple

from fdstash.errors import OptionError

__all__ = ["CACHE_MODES", "CacheMode", "cache_mode"]


class CacheMode(NamedTuple):
    """One cache mode."""

    name: str
    direct: bool  #: O_DIRECT: past the host's page cache
    durable: bool  #: each write is durable when it returns (RWF_DSYNC)
    ignores_flush: bool  #: flush does nothing: a crash of the host may lose anything


#: By name; the names and meanings are those of QEMU's ``cache=``.
CACHE_MODES = {
    mode.name: mode
    for mode in (
        CacheMode("writeback", direct=False, durable=False, ignores_flush=False),
        CacheMode("none", direct=True, durable=False, ignores_flush=False),
        CacheMode("writethrough", direct=False, durable=True, ignores_flush=False),
        CacheMode("directsync", direct=True, durable=True, ignores_flush=False),
        CacheMode("unsafe", direct=False, durable=False, ignores_flush=True),
    )
}


def cache_mode(name: str) -> CacheMode:
    """The mode of that name. Raises `OptionError`, which lists the names."""
    try:
        return CACHE_MODES[name]
    except (KeyError, TypeError):
        known = ", ".join(CACHE_MODES)
        raise OptionError(f"cache must be one of {known}, not {name!r}", option="cache") from None
