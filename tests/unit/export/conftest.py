"""Fixtures of tests/unit/export, asked for by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash import Image
from fdstash.export import NbdServer
from tests.support.disks import make_flat

SIZE = 1 << 20


@pytest.fixture
def where(tmp_path: Path) -> str:
    return str(tmp_path / "nbd.sock")


@pytest.fixture(params=["raw", "flat", "sparse"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    path = tmp_path / "disk"
    if request.param == "raw":
        path.write_bytes(bytes(SIZE))
        opened = fdstash.open(path, "r+", format="raw")
    elif request.param == "flat":
        opened = fdstash.open(make_flat(tmp_path).path, "r+")
    else:
        fdstash.create(path, "vmdk", SIZE, subformat="monolithicSparse")
        opened = fdstash.open(path, "r+")
    with opened:
        yield opened


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Image]:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(SIZE))
    with fdstash.open(path, "r+", format="raw") as opened:
        yield opened


@pytest.fixture
def server(where: str) -> Iterator[NbdServer]:
    with NbdServer() as made:
        made.listen_unix(where)
        yield made
