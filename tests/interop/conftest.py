"""Every test here must leave as many descriptors as it found."""

from __future__ import annotations

import pytest

from tests.support.seen import no_descriptor_leaks

__all__ = ["no_descriptor_leaks"]


@pytest.fixture(autouse=True)
def _leaves_no_descriptor(no_descriptor_leaks: None) -> None:
    pass
