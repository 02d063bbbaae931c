"""Fixtures of tests/unit/image, asked for by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash import Image
from tests.support.disks import make_flat, make_raw


@pytest.fixture(params=["raw", "vmdk"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    if request.param == "raw":  # larger than the offsets that the tests name
        opened = fdstash.open(make_raw(tmp_path, (1 << 17) + 100), "r+", format="raw")
    else:
        opened = fdstash.open(make_flat(tmp_path).path, "r+")
    with opened:
        yield opened
