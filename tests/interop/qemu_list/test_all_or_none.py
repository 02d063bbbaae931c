"""Row 1: the extents of an image change all of them or none of them."""

from __future__ import annotations

import os
from typing import Any

import pytest

import fdstash
from fdstash import ReopenError
from tests.support.disks import FlatDisk
from tests.support.kernel import is_direct
from tests.support.qmp import StorageDaemon, StorageDaemonError, file_node
from tests.support.seen import assert_as_kernel_says


@pytest.mark.parametrize(
    "options", [{"cache": "none"}, {"mode": "r"}, {"mode": "r", "cache": "none"}]
)
def test_row_1_a_reopen_changes_every_file_of_a_vmdk(
    flat: FlatDisk, options: dict[str, Any]
) -> None:
    with fdstash.open(flat.path, "r+") as image:
        image.reopen(**options)
        for file in image.files:
            assert file.direct == is_direct(file.fd) == ("cache" in options)
            assert file.mode == options.get("mode", "r+")
        assert_as_kernel_says(image)


def test_row_1_a_reopen_that_fails_changes_no_file_of_a_vmdk(flat: FlatDisk) -> None:
    with fdstash.open(flat.path, "r+") as image:
        before = image.files
        flat.files[-1].unlink()
        with pytest.raises(ReopenError) as caught:
            image.reopen(path=flat.path, mode="r", cache="none")
        assert caught.value.file == str(flat.files[-1])
        assert image.files == before
        assert_as_kernel_says(image)


def test_row_1_qemu_refuses_a_vmdk_and_changes_its_descriptor_file_alone(
    daemon: StorageDaemon, flat: FlatDisk
) -> None:
    node = {"driver": "vmdk", "node-name": "disk", "file": file_node(flat.path)}
    daemon.execute("blockdev-add", node)
    direct = {"cache": {"direct": True}}
    with pytest.raises(StorageDaemonError):
        daemon.reopen({**node, "file": "file", **direct})
    daemon.reopen(file_node(flat.path, **direct))
    assert daemon.flags_in(flat.path.parent) == {
        "disk.vmdk": os.O_RDWR | os.O_DIRECT,
        "a.bin": os.O_RDWR,
        "b.bin": os.O_RDWR,
    }
