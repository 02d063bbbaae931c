"""Fixtures of tests/unit/reopen, asked for by name: open images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash import Image
from tests.support.disks import FlatDisk


@pytest.fixture
def image(flat: FlatDisk) -> Iterator[Image]:
    with fdstash.open(flat.path, "r+") as opened:
        yield opened


@pytest.fixture
def raw_image(raw: Path) -> Iterator[Image]:
    with fdstash.open(raw, "r+", format="raw") as opened:
        yield opened
