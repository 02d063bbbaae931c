"""What requests cost least, and what they may be."""

from __future__ import annotations

import sys
from typing import NamedTuple

from fdstash.state import ImageState

__all__ = ["Limits", "limits_of"]

_BOUNCE_SIZE = 1 << 20  # FDSTASH_BOUNCE_SIZE of the core


class Limits(NamedTuple):
    """Bytes. A request of any offset, length and memory works."""

    offset_alignment: int  #: offsets and lengths of this multiple need no read-modify-write
    memory_alignment: int  #: memory of this multiple needs no bounce buffer
    preferred: int  #: a request of this size is moved in one piece in every mode
    maximum: int  #: the largest request


def limits_of(state: ImageState) -> Limits:
    """In the present cache mode: those of the most demanding file."""
    offset = memory = 1
    with state.core.reading():
        if state.cache.direct:
            for file in state.graph.files:
                status = file.status()
                offset = max(offset, status.offset_alignment)
                memory = max(memory, status.memory_alignment)
    return Limits(offset, memory, _BOUNCE_SIZE, sys.maxsize)
