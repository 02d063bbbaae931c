"""Fixtures for every test; what they are made of is in tests/support."""

from __future__ import annotations

pytest_plugins = ["tests.support.hosts", "tests.support.images", "tests.support.preload"]
