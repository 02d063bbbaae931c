"""An image without what it is based on, as QEMU opens it with `"backing": null`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fdstash
from tests.support.disks import noise
from tests.support.qemu_tools import create_with_qemu, qemu_img

GRAIN = 64 << 10
SIZE = 16 * GRAIN


def for_qemu(path: Path, *, alone: bool) -> bytes:
    """What QEMU reads."""
    wanted: dict[str, object] = {
        "driver": "vmdk",
        "file": {"driver": "file", "filename": str(path)},
    }
    if alone:
        wanted["backing"] = None
    raw = path.with_suffix(".raw")
    ran = qemu_img("convert", "-O", "raw", f"json:{json.dumps(wanted)}", raw)
    assert ran.status == 0, ran
    return raw.read_bytes()


@pytest.mark.parametrize("zeroed_grain", ["on", "off"])
def test_qemu_reads_what_was_written_alone_and_over_what_is_below(
    tmp_path: Path, zeroed_grain: str
) -> None:
    base, top = tmp_path / "base.vmdk", tmp_path / "top.vmdk"
    create_with_qemu(base, "vmdk", SIZE)
    with fdstash.open(base, "r+") as image:
        image.pwrite(noise(SIZE), 0)
    create_with_qemu(
        top,
        "vmdk",
        SIZE,
        backing_file="base.vmdk",
        backing_fmt="vmdk",
        zeroed_grain=zeroed_grain,
    )
    with fdstash.open(top, "r+", backing=False) as image:
        image.pwrite(b"data" * (GRAIN // 2), 2 * GRAIN)
        image.zero(GRAIN, 3 * GRAIN, unmap=True)
        image.zero(2 * GRAIN, 6 * GRAIN)
        image.pwrite(b"part", 9 * GRAIN + 7)
        image.flush()
        alone = image.pread(SIZE, 0)
        image.reopen(backing=base, mode="r")
        whole = image.pread(SIZE, 0)
        assert (alone, whole) == (for_qemu(top, alone=True), for_qemu(top, alone=False))
        image.reopen(backing=False)
        assert image.pread(SIZE, 0) == alone
    assert whole[6 * GRAIN : 8 * GRAIN] == bytes(2 * GRAIN)
    assert whole[: 2 * GRAIN] == noise(SIZE)[: 2 * GRAIN]
    assert alone[: 2 * GRAIN] == bytes(2 * GRAIN)
