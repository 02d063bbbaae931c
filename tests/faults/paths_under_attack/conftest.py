"""Fixtures of tests/faults/paths_under_attack.

Whatever becomes of the paths, the image serves the bytes of its own files. A reopen by path
succeeds on the same inode or is refused; every other route does not look at the path at all. A
change of path takes what stands there at one moment, or nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.disks import FlatDisk, make_flat


@pytest.fixture
def disk(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path)
