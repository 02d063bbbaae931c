"""What `create` makes, `open` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fdstash

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_create_makes_what_open_opens(tmp_path: Path) -> None:
    fdstash.create(tmp_path / "a.raw", "raw", 12345)
    with fdstash.open(tmp_path / "a.raw", "r+", format="raw") as image:
        assert image.size == 12345
        assert image.pread(image.size, 0) == bytes(12345)
    options: dict[str, Any] = {"subformat": "twoGbMaxExtentFlat", "extent_size": 1 << 20}
    fdstash.create(tmp_path / "a.vmdk", "vmdk", 5 << 20, **options)
    with fdstash.open(tmp_path / "a.vmdk", "r+") as image:
        assert (image.size, len(image.files)) == (5 << 20, 6)
        image.pwrite(b"across", (1 << 20) - 3)
        assert image.pread(6, (1 << 20) - 3) == b"across"
        with pytest.raises(fdstash.LockError):
            fdstash.create(tmp_path / "a.vmdk", "vmdk", 1 << 20)
    with pytest.raises(fdstash.OptionError):
        fdstash.create(tmp_path / "b.raw", "raw", 5, colour="red")
    assert not (tmp_path / "b.raw").exists()
