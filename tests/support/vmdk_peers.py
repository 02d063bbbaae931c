"""What other readers of VMDKs make of an image: QEMU, libvmdk, dissect.hypervisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.need import need_package
from tests.support.qemu_tools import qemu_img

__all__ = ["READERS", "by_dissect", "by_libvmdk", "by_qemu"]


def by_qemu(path: Path) -> bytes:
    copy = path.with_name("copy-of-qemu.raw")
    ran = qemu_img("convert", "-f", "vmdk", "-O", "raw", path, copy)
    assert ran.status == 0, ran
    try:
        return copy.read_bytes()
    finally:
        copy.unlink()


def by_libvmdk(path: Path, parents: Sequence[Path] = ()) -> bytes:
    """`parents`: the chain below, the nearest first; libvmdk does not look for it."""
    pyvmdk = need_package("pyvmdk", "libvmdk-python")
    handles = [pyvmdk.handle() for _ in (path, *parents)]
    opened: list[Any] = []
    try:
        for handle, each in zip(handles, (path, *parents), strict=True):
            handle.open(str(each))
            opened.append(handle)
            handle.open_extent_data_files()
        for child, parent in pairwise(handles):
            child.set_parent(parent)
        data: bytes = handles[0].read_buffer_at_offset(handles[0].get_media_size(), 0)
        return data
    finally:
        for handle in opened:
            handle.close()


def by_dissect(path: Path) -> bytes:
    vmdk = need_package("dissect.hypervisor.disk.vmdk", "dissect.hypervisor")
    with path.open("rb") as file:
        disk = vmdk.VMDK(file)
        try:
            # Its `read` goes on to the next 8 KiB, and fails where that is after the end.
            data: bytes = disk.read_sectors(0, disk.sector_count)
            return data
        finally:
            while disk is not None:
                for each in disk.disks:
                    each.fh.close()
                disk = disk.parent or getattr(disk.disks[0], "parent", None)


READERS: Mapping[str, Callable[[Path], bytes]] = {
    "qemu": by_qemu,
    "libvmdk": by_libvmdk,
    "dissect": by_dissect,
}
