"""Fixtures for every test; what they are made of is in tests/support."""

from __future__ import annotations

import gc

pytest_plugins = ["tests.support.hosts", "tests.support.images", "tests.support.preload"]


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the many searches for garbage need not look at it."""
    gc.collect()
    gc.freeze()
