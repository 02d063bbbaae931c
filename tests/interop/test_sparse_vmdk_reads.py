"""VMDKs of QEMU and of ESX's layouts read as QEMU reads them, and lie where it says they do."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import fdstash
from tests.support.disks import SECTOR
from tests.support.grain_disks import (
    UNMAPPED,
    ZEROED,
    describe,
    write_cowd_extent,
    write_hosted_extent,
    write_sesparse_extent,
)
from tests.support.grain_tables import assert_tables_are_sound
from tests.support.qemu_tools import create_with_qemu, qemu_img, qemu_io
from tests.support.tier import count
from tests.support.vmdk_peers import READERS, by_qemu

MIB = 1 << 20
SIZE = 36 * MIB + 5 * SECTOR  # two grain tables
SUBFORMATS: Mapping[str, dict[str, Any]] = {
    "monolithicSparse": {"subformat": "monolithicSparse"},
    "zeroed_grain": {"subformat": "monolithicSparse", "zeroed_grain": "on"},
    "twoGbMaxExtentSparse": {"subformat": "twoGbMaxExtentSparse"},
    "streamOptimized": {"subformat": "streamOptimized"},
    "monolithicFlat": {"subformat": "monolithicFlat"},
    "twoGbMaxExtentFlat": {"subformat": "twoGbMaxExtentFlat"},
}
SPARSE = [name for name, options in SUBFORMATS.items() if "Flat" not in options["subformat"]]
WRITTEN = [name for name in SPARSE if name != "streamOptimized"]


def judged(*words: Any) -> str:
    ran = qemu_img(*words)
    assert ran.status == 0, ran
    return ran.output


def raw_disk(path: Path, seed: int, size: int = SIZE) -> Path:
    dice = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(30):
            file.seek(dice.randrange(size - 200_000))
            file.write(dice.randbytes(dice.randrange(1, 200_000)))
        file.seek(size - 700)
        file.write(dice.randbytes(700))
    return path


def ours(path: Path) -> bytes:
    with fdstash.open(path) as image:
        return image.pread(image.size, 0)


def pieces(path: Path) -> Iterator[tuple[int, int, bool, bool, int, str | None, int | None]]:
    """What `Image.extents` says, in QEMU's words: adjacent runs are one."""
    last: list[Any] | None = None
    with fdstash.open(path) as image:
        for each in image.extents():
            data = each.kind in ("data", "compressed")
            zero = each.kind in ("zero", "hole")
            depth = 0 if each.kind == "hole" else each.depth
            place = (each.file, each.file_offset) if each.kind == "data" else (None, None)
            if last is not None and last[2:6] == [data, zero, depth, place[0]]:
                joined = place[1] is None or place[1] == last[6] + last[1]
                if joined:
                    last[1] += each.length
                    continue
            if last is not None:
                yield tuple(last)
            last = [each.offset, each.length, data, zero, depth, *place]
    if last is not None:
        yield tuple(last)


def assert_mapped_alike(path: Path) -> None:
    """Each byte: data or zeros, in which image, and where in which file."""
    theirs = json.loads(judged("map", "--output", "json", "-f", "vmdk", path))
    found = iter(list(pieces(path)))
    offset, length, data, zero, depth, _file, place = next(found)
    for each in theirs:
        at, end = each["start"], each["start"] + each["length"]
        while at < end:
            if at >= offset + length:
                offset, length, data, zero, depth, _file, place = next(found)
            # A hole in a flat extent is data and zeros for QEMU.
            assert (data, zero) == (each["data"] and not each["zero"], each["zero"]), f"at {at}"
            if data:
                assert depth == each["depth"], f"at {at}"
            if place is not None:
                assert place + at - offset == each["offset"] + at - each["start"], f"at {at}"
            at = min(end, offset + length)
    assert next(found, None) is None


@pytest.mark.parametrize("kind", SUBFORMATS)
def test_what_qemu_makes_is_read_as_qemu_reads_it(kind: str, tmp_path: Path) -> None:
    raw, path = raw_disk(tmp_path / "raw", 1), tmp_path / "disk.vmdk"
    words = ",".join(f"{name}={value}" for name, value in SUBFORMATS[kind].items())
    judged("convert", "-f", "raw", "-O", "vmdk", "-o", words, raw, path)
    for name, read in READERS.items():
        assert read(path) == raw.read_bytes(), name
    assert ours(path) == raw.read_bytes()
    assert_mapped_alike(path)


@pytest.mark.parametrize("kind", SPARSE)
def test_compressed_grains_of_qemu_are_read(kind: str, tmp_path: Path) -> None:
    """`-c` compresses where the subformat is for it, and is nothing elsewhere."""
    raw, path = raw_disk(tmp_path / "raw", 2), tmp_path / "disk.vmdk"
    words = ",".join(f"{name}={value}" for name, value in SUBFORMATS[kind].items())
    judged("convert", "-c", "-f", "raw", "-O", "vmdk", "-o", words, raw, path)
    assert ours(path) == raw.read_bytes()
    with fdstash.open(path) as image:
        kinds = {extent.kind for extent in image.extents()}
    assert ("compressed" in kinds) == (kind == "streamOptimized")


def random_commands(dice: random.Random, kind: str, size: int, steps: int) -> Iterator[str]:
    for _ in range(steps):
        length = dice.choice([512, 4096, 65536, 3 * 65536, dice.randrange(1, 300) * 512])
        offset = dice.randrange((size - length) // 512) * 512
        if dice.random() < 0.5:
            offset = offset // 65536 * 65536
        zero = kind == "zeroed_grain" and dice.random() < 0.3
        what = "-z" if zero else f"-P {dice.randrange(256)}"
        yield f"write {what} {offset} {length}"


@pytest.mark.parametrize("backed", [False, True], ids=["alone", "child"])
@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("seed", range(count(20)))
def test_what_qemu_wrote_at_random_is_read(
    kind: str, backed: bool, seed: int, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    path = tmp_path / "disk.vmdk"
    options = dict(SUBFORMATS[kind])
    size = SIZE
    if backed:
        (tmp_path / "base").mkdir()
        parent = tmp_path / "base" / "parent.vmdk"
        raw = raw_disk(tmp_path / "raw", seed)
        judged(
            "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicSparse", raw, parent
        )
        options |= {"backing_file": "base/parent.vmdk", "backing_fmt": "vmdk"}
    create_with_qemu(path, "vmdk", size, **options)
    commands = list(random_commands(dice, kind, size, 40))
    ran = qemu_io(path, *commands, format="vmdk")
    assert ran.status == 0, ran
    assert ours(path) == by_qemu(path)
    assert_mapped_alike(path)


@pytest.mark.parametrize("kind", WRITTEN)
def test_both_write_in_turn(kind: str, tmp_path: Path) -> None:
    """Each goes on where the other has stopped, and reads what it has written."""
    dice = random.Random(kind)
    path, raw = tmp_path / "disk.vmdk", tmp_path / "raw"
    create_with_qemu(path, "vmdk", SIZE, **SUBFORMATS[kind])
    raw.write_bytes(bytes(SIZE))
    for turn in range(6):
        commands = list(random_commands(dice, kind, SIZE, 10))
        for target, format_ in ((path, "vmdk"), (raw, "raw")):
            ran = qemu_io(target, *commands, format=format_)
            assert ran.status == 0, ran
        with fdstash.open(path, "r+") as image, fdstash.open(raw, "r+", format="raw") as twin:
            for each in (image, twin):
                again = random.Random(turn)
                for _ in range(10):
                    n = again.randrange(1, 200_000)
                    offset = again.randrange(SIZE - n)
                    if again.random() < 0.3:
                        each.zero(n, offset, unmap=again.random() < 0.5)
                    else:
                        each.pwrite(again.randbytes(n), offset)
        judged("check", "-f", "vmdk", path)
        judged("compare", "-f", "vmdk", "-F", "raw", path, raw)


def grains_of(size: int, grain: int, seed: int) -> dict[int, bytes]:
    dice = random.Random(seed)
    last = size // grain  # none where the disk ends inside it
    return {number: dice.randbytes(grain) for number in range(last) if dice.random() < 0.1}


def with_grains(size: int, grain: int, grains: Mapping[int, bytes]) -> bytes:
    data = bytearray(size)
    for number, part in grains.items():
        if part not in (UNMAPPED, ZEROED):
            data[number * grain : number * grain + grain] = part
    return bytes(data)


@pytest.mark.parametrize("sectors", [1, 8, 128])
def test_a_cowd_disk_is_read_and_written(sectors: int, tmp_path: Path) -> None:
    size, grain = 9 * MIB + 5 * SECTOR, sectors * SECTOR
    grains = grains_of(size, grain, sectors)
    extent = tmp_path / "disk-delta.vmdk"
    path = describe(
        tmp_path / "disk.vmdk",
        [write_cowd_extent(extent, size, grains, grain=sectors)],
        "vmfsSparse",
    )
    data = bytearray(with_grains(size, grain, grains))
    assert ours(path) == data
    for name, read in READERS.items():
        assert read(path) == data, name
    assert_mapped_alike(path)
    dice = random.Random(sectors)
    with fdstash.open(path, "r+") as image:
        for _ in range(60):
            n = dice.choice([1, 512, 5000, 70_000])
            offset = dice.randrange(size - n)
            new = bytes(n) if dice.random() < 0.2 else dice.randbytes(n)
            image.pwrite(new, offset)
            data[offset : offset + n] = new
            if dice.random() < 0.1:
                image.flush()
    assert_tables_are_sound(extent)
    judged("check", "-f", "vmdk", path)
    for name, read in READERS.items():
        assert read(path) == data, name


def test_an_sesparse_disk_is_read(tmp_path: Path) -> None:
    size, dice = 40 * MIB + 5 * SECTOR, random.Random(5)
    grains = {
        number: data if dice.random() < 0.6 else dice.choice([UNMAPPED, ZEROED])
        for number, data in grains_of(size, 4096, 5).items()
    }
    line = write_sesparse_extent(tmp_path / "disk-sesparse.vmdk", size, grains)
    path = describe(tmp_path / "disk.vmdk", [line], "seSparse")
    data = with_grains(size, 4096, grains)
    assert ours(path) == data
    for name in ("qemu", "dissect"):  # libvmdk does not know this type of extent
        assert READERS[name](path) == data, name
    assert_mapped_alike(path)


@pytest.mark.parametrize(("sectors", "gtes"), [(8, 16), (8, 512), (16, 64), (256, 512)])
def test_grains_and_tables_of_other_sizes_are_read(sectors: int, gtes: int, tmp_path: Path) -> None:
    size, grain = 9 * MIB + 5 * SECTOR, sectors * SECTOR
    grains = grains_of(size, grain, gtes)
    line = write_hosted_extent(tmp_path / "grains", size, grains, grain=sectors, gtes=gtes)
    path = describe(tmp_path / "disk.vmdk", [line], "twoGbMaxExtentSparse")
    data = with_grains(size, grain, grains)
    assert ours(path) == data
    assert_mapped_alike(path)
    for name, read in READERS.items():
        if name != "libvmdk" or sectors > 8:  # it takes none that are so small
            assert read(path) == data, name
