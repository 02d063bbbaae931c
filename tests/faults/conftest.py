"""Fixtures of tests/faults, asked for by name."""

from __future__ import annotations

import pytest

from tests.support.positions import PROPERTY
from tests.support.seen import no_descriptor_leaks

__all__ = ["no_descriptor_leaks"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many positions the fault matrix has tried, also where all went well."""
    tried = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == PROPERTY and report.when == "teardown"
    ]
    if tried:
        terminalreporter.write_line(f"fault matrix: a call failed at {sum(tried)} positions")
