"""Fixtures of tests/unit/queue, asked for by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash import Image, Queue
from fdstash.queue import ENGINES
from tests.support.disks import make_flat, make_raw

SIZE = (1 << 17) + 100


@pytest.fixture(params=["raw", "flat", "sparse"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    if request.param == "raw":
        opened = fdstash.open(make_raw(tmp_path, SIZE), "r+", format="raw")
    elif request.param == "flat":
        opened = fdstash.open(make_flat(tmp_path).path, "r+")
    else:
        path = tmp_path / "disk.vmdk"
        fdstash.create(path, "vmdk", 1 << 18, subformat="monolithicSparse")
        opened = fdstash.open(path, "r+")
    with opened:
        yield opened


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def queue(image: Image, engine: str) -> Iterator[Queue]:
    with image.queue(8, engine=engine) as made:
        yield made
