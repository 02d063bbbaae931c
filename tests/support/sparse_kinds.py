"""The kinds of sparse disks that can be written: how each is made, and who reads it right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fdstash
from tests.support.disks import SECTOR, noise, write_file
from tests.support.grain_disks import describe, write_cowd_extent, write_hosted_extent

__all__ = ["KINDS", "SparseKind"]

KIB = 1 << 10
MIB = 1 << 20
_PEERS = ("libvmdk", "dissect")


class SparseKind(NamedTuple):
    """A kind of disk. `make` puts it into a folder, as disk.vmdk, and returns its bytes."""

    make: Callable[[Path], bytearray]
    edges: Sequence[int]  #: guest offsets at which grains, tables, extents or parents end
    sparse: Sequence[str] = ()  #: files of grains, disk.vmdk where it is one
    flat: Sequence[str] = ()  #: the other files
    parents: Sequence[str] = ()  #: the chain below, the nearest first; one file each
    only_read: Sequence[str] = ()  #: of `sparse` and `flat`
    never_written: Sequence[range] = ()  #: guest bytes
    #: Whether QEMU reads it right: after a last grain that is cut it takes some of the next extent
    #: for the rest of that grain, and it leaves out ZERO and RDONLY extents.
    qemu: bool = True
    #: Which of libvmdk and dissect.hypervisor read it right, whatever was written. libvmdk takes
    #: an entry for a zero grain for a sector, loses its way after an extent that is no whole
    #: number of grains, and wants a parent of the same size; dissect fails after the end of a
    #: parent, and leaves out ZERO extents.
    peers: Sequence[str] = _PEERS


def _created(size: int, **options: Any) -> Callable[[Path], bytearray]:
    def make(home: Path) -> bytearray:
        fdstash.create(home / "disk.vmdk", "vmdk", size, **options)
        return bytearray(size)

    return make


def _patched(size: int, grains: Mapping[int, bytes], grain: int) -> bytearray:
    data = bytearray(size)
    for number, part in grains.items():
        data[number * grain : number * grain + len(part)] = part
    return data


_ONE = 33 * MIB + 5 * SECTOR  # two tables
_EACH = MIB + 64 * KIB
_SPLIT = 9 * _EACH - 3 * SECTOR
_ODD = MIB + 9 * SECTOR  # no whole grains
_SMALL = 3 * MIB + 3 * SECTOR
_COWD = 20 * MIB + 3 * SECTOR
_CHILD = 2 * MIB + 7 * SECTOR
_PARENT = MIB + 3 * SECTOR


def _small(home: Path) -> bytearray:
    grains = {number: noise(8 * KIB, number) for number in (0, 1, 17, 40, 200)}
    line = write_hosted_extent(home / "grains", _SMALL, grains, grain=16)
    describe(home / "disk.vmdk", [line], "twoGbMaxExtentSparse")
    return _patched(_SMALL, grains, 8 * KIB)


def _odd(home: Path) -> bytearray:
    lines = [write_hosted_extent(home / f"grains-{n}", _ODD, grain=128, gtes=512) for n in range(3)]
    describe(home / "disk.vmdk", lines, "twoGbMaxExtentSparse")
    return bytearray(3 * _ODD)


def _cowd(home: Path) -> bytearray:
    grains = {number: noise(SECTOR, number) for number in (0, 5, 6, 4095, 4096, 20_000)}
    line = write_cowd_extent(home / "grains", _COWD, grains)
    describe(home / "disk.vmdk", [line], "vmfsSparse")
    return _patched(_COWD, grains, SECTOR)


def _child(parent_size: int, **options: Any) -> Callable[[Path], bytearray]:
    def make(home: Path) -> bytearray:
        (home / "base").mkdir()
        model = bytearray(_CHILD)
        path = home / "base" / "parent.vmdk"
        fdstash.create(path, "vmdk", parent_size, subformat="monolithicSparse")
        with fdstash.open(path, "r+") as parent:
            for offset in (0, 200_000, 700_000, parent_size - 60_000):
                data = noise(60_000, offset)
                parent.pwrite(data, offset)
                model[offset : offset + len(data)] = data
        fdstash.create(
            home / "disk.vmdk",
            "vmdk",
            _CHILD,
            subformat="monolithicSparse",
            backing_file="base/parent.vmdk",
            **options,
        )
        return model

    return make


def _mixed(home: Path) -> bytearray:
    """What QEMU takes together: flat, sparse, COWD, and flat again."""
    flat = noise(37 * SECTOR, 1), noise(91 * SECTOR, 2)
    write_file(home / "flat-1", flat[0])
    write_file(home / "flat-2", flat[1])
    lines = [
        'RW 37 FLAT "flat-1" 0',
        write_hosted_extent(home / "grains-1", 304 * SECTOR, redundant=False),
        write_cowd_extent(home / "grains-2", 5000 * SECTOR, {2: b"e" * 2 * SECTOR}, grain=2),
        'RW 91 FLAT "flat-2" 0',
    ]
    describe(home / "disk.vmdk", lines, "twoGbMaxExtentSparse")
    sparse = bytes(308 * SECTOR) + b"e" * 2 * SECTOR + bytes(4994 * SECTOR)
    return bytearray(flat[0] + sparse + flat[1])


def _custom(home: Path) -> bytearray:
    """What a descriptor may hold beside that: zeros, and extents that are not written."""
    flat = noise(60 * SECTOR, 3)
    write_file(home / "flat", flat)
    grains = {number: noise(4 * KIB, number) for number in (0, 3, 9)}
    read = write_hosted_extent(home / "read", 90 * SECTOR, grains)
    lines = [
        'RW 20 FLAT "flat" 3',
        write_hosted_extent(home / "grains-1", 300 * SECTOR, zeroed_grain=True),
        "RW 50 ZERO",
        read.replace("RW", "RDONLY"),
        'RDONLY 21 FLAT "flat" 30',
        write_hosted_extent(home / "grains-2", 299 * SECTOR, grains),
        "RW 1 ZERO",
    ]
    describe(home / "disk.vmdk", lines, "custom")
    return bytearray(
        flat[3 * SECTOR : 23 * SECTOR]
        + bytes(350 * SECTOR)
        + _patched(90 * SECTOR, grains, 4 * KIB)
        + flat[30 * SECTOR : 51 * SECTOR]
        + _patched(299 * SECTOR, grains, 4 * KIB)
        + bytes(SECTOR)
    )


_GRAINS_64K = [*range(0, 5 * 64 * KIB, 64 * KIB), 32 * MIB, 33 * MIB]
_CHILD_EDGES = [*range(0, _CHILD, 64 * KIB), _PARENT - 60_000, _PARENT, _PARENT + 61 * KIB]

KINDS: Mapping[str, SparseKind] = {
    "monolithicSparse": SparseKind(
        _created(_ONE, subformat="monolithicSparse"), _GRAINS_64K, ["disk.vmdk"]
    ),
    "zeroed_grain": SparseKind(
        _created(_ONE, subformat="monolithicSparse", zeroed_grain=True),
        _GRAINS_64K,
        ["disk.vmdk"],
        peers=["dissect"],
    ),
    "twoGbMaxExtentSparse": SparseKind(
        _created(_SPLIT, subformat="twoGbMaxExtentSparse", extent_size=_EACH),
        [*(_EACH * n for n in range(10)), *(_EACH * n + 64 * KIB for n in range(9))],
        [f"disk-s{number:03}.vmdk" for number in range(1, 10)],
        peers=["dissect"],
    ),
    "odd-extents": SparseKind(
        _odd,
        [*(_ODD * n for n in range(4)), *(_ODD * n + 64 * KIB for n in range(3))],
        ["grains-0", "grains-1", "grains-2"],
        qemu=False,
        peers=["dissect"],
    ),
    "small-tables": SparseKind(_small, [*range(0, _SMALL, 128 * KIB), 8 * KIB, _SMALL], ["grains"]),
    "vmfsSparse": SparseKind(_cowd, [*range(0, _COWD, 2 * MIB), _COWD], ["grains"]),
    "child": SparseKind(_child(_CHILD), _CHILD_EDGES, ["disk.vmdk"], parents=["base/parent.vmdk"]),
    "child-of-shorter": SparseKind(
        _child(_PARENT), _CHILD_EDGES, ["disk.vmdk"], parents=["base/parent.vmdk"], peers=[]
    ),
    "child-zeroed_grain": SparseKind(
        _child(_CHILD, zeroed_grain=True),
        _CHILD_EDGES,
        ["disk.vmdk"],
        parents=["base/parent.vmdk"],
        peers=["dissect"],
    ),
    "mixed": SparseKind(
        _mixed,
        [0, *(sectors * SECTOR for sectors in (37, 45, 341, 4437, 5341, 5432))],
        ["grains-1", "grains-2"],
        ["flat-1", "flat-2"],
        peers=["dissect"],
    ),
    "custom": SparseKind(
        _custom,
        [0, *(sectors * SECTOR for sectors in (20, 320, 370, 460, 481, 488, 780, 781))],
        ["grains-1", "read", "grains-2"],
        ["flat"],
        only_read=["read"],
        never_written=[
            range(320 * SECTOR, 481 * SECTOR),
            range(780 * SECTOR, 781 * SECTOR),
        ],
        qemu=False,
        peers=[],
    ),
}
