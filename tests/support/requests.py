"""A request in flight, held there for as long as a test wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fdstash import Image
from fdstash.datapath import Requests

__all__ = ["request_in_flight"]


@contextmanager
def request_in_flight(image: Image, kind: Requests) -> Iterator[None]:
    """As if a thread had a request of that kind in flight."""
    core = image._state.core  # also of an image that is closed meanwhile
    ticket = core.enter(int(kind))
    try:
        yield
    finally:
        core.leave(ticket, int(kind))
