"""Fixtures of tests/unit/chains, asked for by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chains import Chain, make_chain


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """A base and two snapshots in one folder."""
    return make_chain(tmp_path)
