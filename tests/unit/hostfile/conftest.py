"""Fixtures of tests/unit/hostfile, asked for by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ground import Ground, Place
from tests.support.hosts import Hosts


@pytest.fixture
def ground(request: pytest.FixtureRequest, hosts: Hosts) -> Iterator[Ground]:
    place: Place = request.param
    # The workplace of the hosts is a tmpfs.
    folder = hosts.backing_file(0).with_suffix(".folder")
    folder.mkdir()
    made = Ground(hosts, place, folder)
    yield made
    made.close()
