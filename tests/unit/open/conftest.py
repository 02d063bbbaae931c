"""Fixtures of tests/unit/open, asked for by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def fd_of() -> Iterator[Callable[..., int]]:
    """Opens files as a caller would; closes at the end what is still the caller's."""
    made: list[int] = []

    def make(path: str | os.PathLike[str], flags: int = os.O_RDWR) -> int:
        made.append(os.open(path, flags))
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)
