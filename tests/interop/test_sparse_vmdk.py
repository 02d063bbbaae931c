"""Sparse VMDKs that are made here, judged by QEMU; those that QEMU makes, read here."""

from __future__ import annotations

import json
import random
import re
import struct
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash.errors import FormatError, OptionError
from fdstash.formats.vmdk import cowd, grain_directory, markers, sparse_header
from fdstash.formats.vmdk.cowd import CowdHeader
from fdstash.formats.vmdk.sesparse import Area, SeSparseHeader, VolatileHeader
from fdstash.formats.vmdk.stream_reader import Grain, StreamReader
from fdstash.formats.vmdk.stream_writer import StreamWriter
from tests.support.command import command
from tests.support.qemu_tools import qemu_img, qemu_io
from tests.support.tier import FULL
from tests.support.vmdk_peers import READERS

MIB = 1 << 20
GRAIN = 65536


def judged(*words: Any) -> str:
    ran = qemu_img(*words)
    assert ran.status == 0, ran
    return ran.output


def info(path: Path) -> dict[str, Any]:
    found = json.loads(judged("info", "--output", "json", path))
    assert isinstance(found, dict)
    return found


def same_as(path: Path, raw: Path) -> None:
    judged("check", path)
    judged("compare", "-f", "vmdk", "-F", "raw", path, raw)


def without_cid(data: bytes) -> bytes:
    """An extent or a descriptor of QEMU or ours, as far as they are to be the same."""
    data = re.sub(rb"(?<=\nCID=)[0-9a-f]+", b"random", data)
    return data.replace(b'"\n\n# Extent', b'"\n# Extent').replace(b"\0", b"")


def raw_disk(path: Path, size: int, grains: dict[int, bytes], grain: int = GRAIN) -> Path:
    with path.open("wb") as file:
        for number, data in grains.items():
            file.seek(number * grain)
            file.write(data)
        file.truncate(size)
    return path


SUBFORMATS = ("monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"adapter_type": "lsilogic", "hwversion": "7", "toolsversion": "12"},
    {"compat6": True},
    {"zeroed_grain": True},
]


SIZES = (512, 1000, 10 * MIB, 32 * MIB + 512, 2 << 30, 5 << 30)
#: Of the most that QEMU makes, its check takes half a minute.
_HUGE_SIZE = (9 if FULL else 2) << 40
HUGE = [(name, {}, _HUGE_SIZE) for name in ("monolithicSparse", "streamOptimized")]


@pytest.mark.parametrize(
    ("subformat", "options", "size"), [*product(SUBFORMATS, OPTIONS, SIZES), *HUGE], ids=str
)
def test_qemu_would_have_made_the_same(
    subformat: str, options: dict[str, Any], size: int, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    fdstash.create(ours / "a.b.vmdk", "vmdk", size, subformat=subformat, **options)
    words = {n: "on" if v is True else v for n, v in {"subformat": subformat, **options}.items()}
    given = ",".join(f"{n}={v}" for n, v in words.items())
    judged("create", "-q", "-f", "vmdk", "-o", given, theirs / "a.b.vmdk", str(size))
    judged("check", ours / "a.b.vmdk")
    mine, its = info(ours / "a.b.vmdk"), info(theirs / "a.b.vmdk")
    assert mine["virtual-size"] == its["virtual-size"]
    assert mine["format-specific"]["data"]["create-type"] == subformat
    if subformat == "streamOptimized":  # a stream here, tables first there
        return
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in ours.iterdir()) == names
    for name in names:
        assert (ours / name).stat().st_size == (theirs / name).stat().st_size or name == names[-1]
        if size < 1 << 40:
            made, model = (ours / name).read_bytes(), (theirs / name).read_bytes()
            assert without_cid(made) == without_cid(model)


@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize("subformat", SUBFORMATS[:2])
def test_qemu_writes_into_what_is_made(subformat: str, zeroed: bool, tmp_path: Path) -> None:
    path, size = tmp_path / "disk.vmdk", 3 << 30
    fdstash.create(path, "vmdk", size, subformat=subformat, zeroed_grain=zeroed)
    writes = [(0, 1), (65000, 2), (2 << 30, 3), ((2 << 30) - 512, 4), (size - 512, 5)]
    commands = [f"write -P {byte} {offset} 512" for offset, byte in writes]
    commands += ["write -z 131072 131072", "write -P 9 1M 1M"]
    ran = qemu_io(path, *commands, format="vmdk")
    assert ran.status == 0, ran
    reads = [f"read -P {byte} {offset} 512" for offset, byte in writes]
    ran = qemu_io(path, *reads, "read -P 9 1M 1M", "read -P 0 128k 128k", format="vmdk")
    assert ran.status == 0, ran
    judged("check", path)
    mapped = json.loads(judged("map", "--output", "json", "-f", "vmdk", path))
    assert sum(each["length"] for each in mapped) == size


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_a_child_reads_as_its_parent(subformat: str, tmp_path: Path) -> None:
    parent, child = tmp_path / "parent.vmdk", tmp_path / "sub" / "child.vmdk"
    child.parent.mkdir()
    fdstash.create(parent, "vmdk", 8 * MIB, subformat="monolithicSparse")
    assert qemu_io(parent, "write -P 7 1M 1M", format="vmdk").status == 0
    fdstash.create(child, "vmdk", 8 * MIB, subformat=subformat, backing_file="../parent.vmdk")
    found = info(child)
    assert found["backing-filename"] == "../parent.vmdk"
    data = info(parent)["format-specific"]["data"]
    assert found["format-specific"]["data"]["parent-cid"] == data["cid"]
    ran = qemu_io(child, "read -P 7 1M 1M", "read -P 0 0 1M", format="vmdk")
    assert ran.status == 0, ran
    if subformat != "streamOptimized":
        ran = qemu_io(child, "write -P 8 1M 512", "read -P 7 1049088 512", format="vmdk")
        assert ran.status == 0, ran


def test_a_parent_is_a_vmdk_with_a_cid(tmp_path: Path) -> None:
    fdstash.create(tmp_path / "a.vmdk", "vmdk", MIB, subformat="twoGbMaxExtentSparse")
    (tmp_path / "raw").write_bytes(b"some text\n")
    child: dict[str, Any] = {"subformat": "monolithicSparse"}
    for name, kind in (
        ("a-s001.vmdk", FormatError),  # an extent of QEMU's layout: its descriptor is empty
        ("raw", FormatError),
        ("missing", FileNotFoundError),
        (".", OSError),
        ("child.vmdk", FileNotFoundError),
    ):
        with pytest.raises(kind):
            fdstash.create(tmp_path / "child.vmdk", "vmdk", MIB, backing_file=name, **child)
    fdstash.create(tmp_path / "child.vmdk", "vmdk", MIB, backing_file="a.vmdk", **child)
    with pytest.raises(OptionError, match="its own parent"):
        fdstash.create(tmp_path / "child.vmdk", "vmdk", MIB, backing_file="child.vmdk", **child)


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("compat6", {"subformat": "monolithicSparse", "compat6": True, "hwversion": "4"}),
        ("compat6", {"compat6": "on"}),
        ("backing_file", {"backing_file": "x"}),
        ("zeroed_grain", {"zeroed_grain": True}),
        ("preallocation", {"subformat": "monolithicSparse", "preallocation": "full"}),
        ("folder", {"subformat": "monolithicSparse", "folder": "x"}),
        ("extent_size", {"subformat": "streamOptimized", "extent_size": MIB}),
        ("extent_size", {"subformat": "twoGbMaxExtentSparse", "extent_size": 65536 + 512}),
        ("size", {"subformat": "monolithicSparse", "size": 2**62}),
    ],
)
def test_options_that_do_not_fit_are_refused(
    option: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(OptionError) as caught:
        fdstash.create(tmp_path / "disk.vmdk", "vmdk", **{"size": MIB, **options})
    assert caught.value.option == option
    assert list(tmp_path.iterdir()) == []


def test_many_sparse_extents_in_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    options: dict[str, Any] = {"subformat": "twoGbMaxExtentSparse", "extent_size": MIB}
    fdstash.create(path, "vmdk", 40 * MIB + 512, folder="parts", **options)
    assert len(list((tmp_path / "parts").iterdir())) == 41
    ran = qemu_io(path, "write -P 3 1000k 100k", "read -P 3 1000k 100k", format="vmdk")
    assert ran.status == 0, ran
    judged("check", path)


def test_the_command_makes_them_and_lists_how(tmp_path: Path) -> None:
    listed = command("create", "-f", "vmdk", "-o", "help").stdout
    for word in (*SUBFORMATS, "zeroed_grain=<flag>", "compat6=<flag>", "backing_file=<text>"):
        assert word in listed
    path = tmp_path / "disk.vmdk"
    options = "subformat=streamOptimized,zeroed_grain=on,compat6=off"
    done = command("create", "-f", "vmdk", "-o", options, path, "1M")
    assert done.exit_code == 0, done.output
    assert info(path)["virtual-size"] == MIB
    done = command("create", "-f", "vmdk", "-o", "zeroed_grain=maybe", path, "1M")
    assert done.exit_code == 2
    assert "neither on nor off" in done.stderr


def random_grains(seed: int, count: int, chance: float, grain: int = GRAIN) -> dict[int, bytes]:
    dice = random.Random(seed)
    kinds = (dice.randbytes, lambda n: bytes([dice.randrange(1, 256)]) * n, bytes)
    return {n: dice.choice(kinds)(grain) for n in range(count) if dice.random() < chance}


def text_for(name: str, sectors: int) -> bytes:
    return (
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="streamOptimized"\n\n# Extent description\nRW {sectors} SPARSE "{name}"\n\n'
        "# The Disk Data Base\n#DDB\n\n"  # libvmdk looks for these comments
    ).encode()


def stream(path: Path, size: int, grains: dict[int, bytes], **options: Any) -> None:
    """Writes a stream through a pipe, in which nothing can be sought."""
    with path.open("wb") as target:
        cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=target)
        assert cat.stdin is not None
        text = text_for(path.name, size // 512)
        with cat.stdin, StreamWriter(cat.stdin, size, descriptor=text, **options) as writer:
            for number, data in grains.items():
                writer.write_grain(number, data)
    assert cat.wait() == 0


def has_zeros(grains: dict[int, bytes]) -> bool:
    return not all(map(any, grains.values()))


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_is_read_by_all(seed: int, tmp_path: Path) -> None:
    grain = (8, 16, 128, 128, 256, 2048)[seed] * 512
    count = (3000, 100, 1100, 10, 600, 20)[seed]
    grains = random_grains(seed, count, (0.05, 1, 0.1, 0, 0.1, 1)[seed], grain)
    size = count * grain
    path = tmp_path / "disk.vmdk"
    raw = raw_disk(tmp_path / "raw", size, grains, grain)
    stream(path, size, grains, grain_sectors=grain // 512, zeroed_grain=seed % 2 == 1)
    found = info(path)
    assert found["format-specific"]["data"]["create-type"] == "streamOptimized"
    assert found["cluster-size"] == grain
    same_as(path, raw)
    with fdstash.open(path) as image:
        assert image.pread(size, 0) == raw.read_bytes()
    for name, read in READERS.items():
        # libvmdk takes no grains of 8 sectors, and an entry for zeros for a sector.
        if name != "libvmdk" or (grain > 4096 and not (seed % 2 and has_zeros(grains))):
            assert read(path) == raw.read_bytes(), name


def test_a_stream_whose_last_grain_is_cut_is_read_by_all(tmp_path: Path) -> None:
    size = 3 * GRAIN + 1536
    grains = {0: b"a" * GRAIN, 3: b"z" * 1536}
    path, raw = tmp_path / "disk.vmdk", raw_disk(tmp_path / "raw", size, grains)
    stream(path, size, grains)
    same_as(path, raw)
    for name, read in READERS.items():
        assert read(path) == raw.read_bytes(), name


@pytest.mark.parametrize("size", [10 * MIB, 70 * MIB + 512])
def test_a_stream_of_qemu_is_read(size: int, tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    grains = random_grains(1, size // GRAIN, 0.2)
    if size % GRAIN:
        grains[size // GRAIN] = b"e" * (size % GRAIN)
    raw = raw_disk(tmp_path / "raw", size, grains)
    options = "subformat=streamOptimized"
    judged("convert", "-f", "raw", "-O", "vmdk", "-o", options, raw, path)
    # Grains that come late, each behind a gap.
    for number in [n for n in range(size // GRAIN) if not any(grains.get(n, b""))][:2]:
        ran = qemu_io(path, f"write -c -P 5 {number * GRAIN} 64k", format="vmdk")
        assert ran.status == 0, ran
        grains[number] = b"\5" * GRAIN
    with path.open("rb") as file:

        def read(n: int, offset: int) -> bytes:
            file.seek(offset)
            return file.read(n)

        found = {e.number: e.data for e in StreamReader(read, "disk") if isinstance(e, Grain)}
    assert found == {number: data for number, data in grains.items() if any(data)}


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_headers_and_directories_of_qemu_pass_the_checks(subformat: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    judged("create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", path, "100M")
    extent = tmp_path / "disk-s001.vmdk" if subformat.startswith("twoGb") else path
    data = extent.read_bytes()
    header = sparse_header.parse(data, "disk.vmdk")
    sparse_header.check(header, "disk.vmdk", len(data))
    both = []
    for field, sector in (("gdOffset", header.gd_offset), ("rgdOffset", header.rgd_offset)):
        at = sector * 512
        entries = grain_directory.decode(data[at : at + header.gd_bytes])
        found = grain_directory.Directory("disk.vmdk", field, at, entries, header.gt_bytes)
        grain_directory.check(found, len(data))
        both.append(found)
    taken = [(region.start, region.end) for region in sparse_header.regions(header)]
    grain_directory.check_apart(both, taken, len(data))


def test_qemu_finds_the_footer_where_we_do(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 100 * MIB, subformat="streamOptimized")
    data = path.read_bytes()
    header = sparse_header.parse(data, "")
    footer = markers.read_footer(lambda n, at: data[at : at + n], header, "", len(data))
    assert footer.gt_count == 4
    path.write_bytes(data[:-512])
    assert qemu_img("info", path).status != 0
    with pytest.raises(FormatError):
        markers.read_footer(lambda n, at: data[at : at + n], header, "", len(data) - 512)


def test_qemu_reads_what_the_cowd_header_says(tmp_path: Path) -> None:
    grain, capacity = 8, 40000
    header = CowdHeader(capacity, grain, 4, gd_entries=2, free_sector=5 + 32 + 8)
    table = [0] * cowd.GTES_PER_GT
    table[3] = 37
    data = header.encode() + grain_directory.encode([5, 0]).ljust(512, b"\0")
    data += grain_directory.encode(table) + b"g" * 4096
    found = cowd.parse(data, "disk")
    cowd.check(found, "disk", len(data))
    (tmp_path / "disk-delta.vmdk").write_bytes(data)
    text = text_for("disk-delta.vmdk", capacity).replace(b" SPARSE", b" VMFSSPARSE")
    (tmp_path / "disk.vmdk").write_bytes(text.replace(b"streamOptimized", b"vmfsSparse"))
    raw = raw_disk(tmp_path / "raw", capacity * 512, {3: b"g" * 4096}, 4096)
    same_as(tmp_path / "disk.vmdk", raw)


def test_qemu_reads_what_the_sesparse_entries_say(tmp_path: Path) -> None:
    capacity = 4096 * 8 + 80  # two tables
    number = 4097  # a grain whose number has bits in both parts of an entry
    header = SeSparseHeader(
        capacity,
        volatile_header=Area(1, 1),
        journal_header=Area(2, 2),
        journal=Area(4, 4),
        grain_directory=Area(8, 1),
        grain_tables=Area(64, 128),
        free_bitmap=Area(192, 8),
        back_map=Area(200, 8),
        grains=Area(256, 8 * 5000),
    )
    first = [0] * 4096
    first[7] = 3 << 60  # grain 0
    first[8] = 2 << 60
    first[9] = 3 << 60 | (number & 0xFFF) << 48 | number >> 12
    second = [3 << 60 | 2 << 48, *[0] * 4095]
    data = bytearray((256 + 8 * 5000) * 512)
    for at, part in (
        (0, header.encode()),
        (1, VolatileHeader().encode()),
        (8, struct.pack("<2Q", 1 << 60 | 1, 1 << 60)),
        (64, struct.pack("<4096Q", *second)),
        (128, struct.pack("<4096Q", *first)),
        (256, b"a" * 4096),
        (256 + 8 * number, b"b" * 4096),
        (256 + 8 * 2, b"c" * 4096),
    ):
        data[at * 512 : at * 512 + len(part)] = part
    (tmp_path / "disk-sesparse.vmdk").write_bytes(data)
    text = text_for("disk-sesparse.vmdk", capacity).replace(b" SPARSE", b" SESPARSE")
    (tmp_path / "disk.vmdk").write_bytes(text.replace(b"streamOptimized", b"seSparse"))
    grains = {7: b"a" * 4096, 9: b"b" * 4096, 4096: b"c" * 4096}
    same_as(tmp_path / "disk.vmdk", raw_disk(tmp_path / "raw", capacity * 512, grains, 4096))
