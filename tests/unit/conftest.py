"""Fixtures of tests/unit, asked for by name."""

from __future__ import annotations

from tests.support.seen import no_descriptor_leaks

__all__ = ["no_descriptor_leaks"]
