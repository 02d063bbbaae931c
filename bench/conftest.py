"""What every benchmark has: folders to work in, enough descriptors, tables at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fdstash
from bench import places, results
from bench.loads import SIZE


@pytest.fixture(scope="session")
def tmpfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on tmpfs."""
    with places.tmpfs(tmp_path_factory.mktemp("tmpfs")) as folder:
        yield folder


@pytest.fixture(scope="session")
def ext4(tmpfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on ext4: on a loop device over tmpfs, or a temporary folder without root."""
    with places.ext4(tmpfs, tmp_path_factory.mktemp("ext4")) as folder:
        yield folder


@pytest.fixture(scope="session")
def disk(tmpfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a disk for O_DIRECT with room for three images of a load."""
    size = 3 * SIZE + (256 << 20)
    with places.disk(tmpfs, tmp_path_factory.mktemp("disk"), size) as folder:
        yield folder


@pytest.fixture(params=["tmpfs", "ext4"])
def place(request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own, on either file system."""
    folder: Path = request.getfixturevalue(request.param)
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    own = folder / name
    own.mkdir()
    return own


@pytest.fixture(scope="session", autouse=True)
def many_descriptors() -> None:
    """512 extents twice over, each with a slot, a lock and a new description."""
    fdstash.raise_nofile()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for asked in results.questions():
        terminalreporter.section(asked.name)
        for line in asked.lines():
            terminalreporter.write_line(line)
        asked.keep()
