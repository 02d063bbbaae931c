"""A reopen of several images: all or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from fdstash import reopen as transaction
from fdstash.datapath import deadline
from fdstash.errors import OptionError
from fdstash.image import Image
from fdstash.report import ReopenReport

__all__ = ["reopen_all"]


def reopen_all(
    pairs: Iterable[tuple[Image, Mapping[str, Any]]], *, timeout: float | None = 30.0
) -> list[ReopenReport]:
    """Reopen several images at once, all or none.

    `pairs`: an image and the options of `Image.reopen` for it. `timeout` (seconds)
    bounds the whole. Raises `ReopenError`; then every image is as it was.
    """
    wanted = [(image._state, options) for image, options in pairs]  # noqa: SLF001 - of its face
    # In a fixed order, so that two calls with the same images cannot wait for each other.
    states = sorted((state for state, _ in wanted), key=id)
    if any(a is b for a, b in pairwise(states)):
        raise OptionError("an image is named twice; give all its options at once")
    until = deadline(timeout)
    begun = []
    try:
        for state in states:
            state.begin(until)
            begun.append(state)
        return transaction.run(
            [transaction.change_for(state, **options) for state, options in wanted], until
        )
    finally:
        for state in reversed(begun):
            state.end()
