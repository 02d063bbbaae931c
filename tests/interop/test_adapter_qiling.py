"""A boot sector in Qiling's 8086 reads and writes our image through INT 13h."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from tests.support.disks import noise
from tests.support.need import need_package

HEADS, SECTORS, CYLINDERS = 4, 17, 30
COUNT = HEADS * SECTORS * CYLINDERS
#: Where the guest leaves AX after each service, and CX and DX after that of the geometry.
RESULTS = 0x7000

#: After a service: AX into the results, and a byte whose bit 0 is the carry flag.
STORE = "AB 9F 88 25 47   stosw; lahf; mov [di],ah; inc di"

#: The program of the boot sector, ORG 7C00h. DL holds the drive all along.
PROGRAM = f"""
    FC              cld
    31 C0           xor  ax,ax
    8E D8           mov  ds,ax
    8E C0           mov  es,ax
    BF 00 70        mov  di,7000h
    B8 03 02        mov  ax,0203h       read three sectors from C 1, H 3, S 16,
    B9 10 01        mov  cx,0110h       the last of which is of the next cylinder
    B6 03           mov  dh,3
    BB 00 80        mov  bx,8000h
    CD 13           int  13h
    {STORE}
    BE 00 80        mov  si,8000h       turn every bit of what was read
    B9 00 06        mov  cx,600h
    F6 14           not  byte [si]
    46              inc  si
    E2 FB           loop back to the not
    B8 03 03        mov  ax,0303h       write it to C 2, H 1, S 1
    B9 01 02        mov  cx,0201h
    B6 01           mov  dh,1
    CD 13           int  13h
    {STORE}
    BE A0 7D        mov  si,7DA0h       read by packet, to 9000h
    B8 00 42        mov  ax,4200h
    CD 13           int  13h
    {STORE}
    BE B0 7D        mov  si,7DB0h       write that by packet, elsewhere
    B8 00 43        mov  ax,4300h
    CD 13           int  13h
    {STORE}
    B4 08           mov  ah,8           the geometry
    52              push dx
    CD 13           int  13h
    89 C8           mov  ax,cx
    AB              stosw
    89 D0           mov  ax,dx
    AB              stosw
    5A              pop  dx
    F4              hlt
"""


def packet(count: int, offset: int, lba: int) -> bytes:
    return b"\x10\0" + b"".join(
        value.to_bytes(size, "little") for value, size in ((count, 2), (offset, 4), (lba, 8))
    )


def assemble(text: str) -> bytes:
    """The hexadecimal numbers that each line starts with."""
    code = bytearray()
    for line in text.splitlines():
        for word in line.split():
            if len(word) != 2 or not set(word) <= set("0123456789ABCDEF"):
                break
            code.append(int(word, 16))
    return bytes(code)


def boot_sector(reads: int = 500, writes: int = 600) -> bytes:
    code = assemble(PROGRAM).ljust(0x1A0, b"\xf4")
    packets = packet(2, 0x9000, reads) + packet(2, 0x9000, writes)
    return (code + packets).ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture(autouse=True)
def qiling(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Its loader replaces the hook of the process and leaves it there.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return need_package("qiling", "qiling")


@pytest.fixture(params=["raw", "vmdk"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[fdstash.Image]:
    path, options = tmp_path / "disk", {}
    if request.param == "vmdk":
        options = {"subformat": "twoGbMaxExtentFlat", "extent_size": 100 * 512}
    fdstash.create(path, request.param, COUNT * 512, **options)
    with fdstash.open(path, "r+", format=request.param) as opened:
        opened.pwrite(boot_sector() + noise(COUNT * 512 - 512, 7), 0)
        yield opened


@pytest.fixture
def disk(image: fdstash.Image) -> Any:
    from fdstash.adapters.qiling import ImageDisk

    return ImageDisk(image, heads=HEADS, sectors_per_track=SECTORS)


def run(disk: Any, folder: Path) -> Any:
    from fdstash.adapters.qiling import boot

    root = folder / "root"
    root.mkdir(exist_ok=True)
    ql = boot(disk, root, console=False)
    assert ql.arch.regs.dl == 0x80
    ql.run(timeout=20_000_000)
    return ql


def results(ql: Any) -> list[tuple[int, bool]]:
    """AX and the carry flag after each of the four services that move data."""
    found = bytes(ql.mem.read(RESULTS, 12))
    return [
        (int.from_bytes(found[at : at + 2], "little"), bool(found[at + 2] & 1))
        for at in range(0, 12, 3)
    ]


def sectors(image: fdstash.Image, lba: int, count: int) -> bytes:
    return image.pread(count * 512, lba * 512)


def lba(cylinder: int, head: int, sector: int) -> int:
    return (cylinder * HEADS + head) * SECTORS + sector - 1


def test_a_boot_sector_reads_and_writes_by_chs_and_by_packet(
    disk: Any, image: fdstash.Image, tmp_path: Path
) -> None:
    before = image.pread(image.size, 0)
    ql = run(disk, tmp_path)
    assert results(ql) == [(3, False), (3, False), (0, False), (0, False)]
    expected = bytearray(before)
    turned = bytes(~byte & 0xFF for byte in sectors(image, lba(1, 3, 16), 3))
    expected[lba(2, 1, 1) * 512 : lba(2, 1, 4) * 512] = turned
    expected[600 * 512 : 602 * 512] = before[500 * 512 : 502 * 512]
    assert image.pread(image.size, 0) == bytes(expected)


def test_the_geometry_is_that_of_the_adapter(disk: Any, tmp_path: Path) -> None:
    ql = run(disk, tmp_path)
    cx, dx = (int.from_bytes(ql.mem.read(RESULTS + at, 2), "little") for at in (12, 14))
    assert ((cx >> 8) | (cx & 0xC0) << 2, cx & 63) == (CYLINDERS - 1, SECTORS)
    assert (dx >> 8, dx & 0xFF) == (HEADS - 1, 1)
    assert (disk.n_heads, disk.n_sectors, disk.n_cylinders) == (HEADS, SECTORS, CYLINDERS)


def test_a_guest_whose_disk_became_read_only_is_told_so_and_runs_on(
    disk: Any, image: fdstash.Image, tmp_path: Path
) -> None:
    before = image.pread(image.size, 0)
    image.reopen(mode="r")
    ql = run(disk, tmp_path)
    assert results(ql) == [(3, False), (0x0300, True), (0, False), (0x0300, True)]
    assert image.pread(image.size, 0) == before
    image.reopen(mode="r+", cache="none")
    assert results(run(disk, tmp_path))[1] == (3, False)


def test_a_sector_that_is_not_there_is_not_found(
    disk: Any, image: fdstash.Image, tmp_path: Path
) -> None:
    image.pwrite(boot_sector(reads=COUNT - 1, writes=COUNT), 0)
    ql = run(disk, tmp_path)
    assert results(ql)[2:] == [(0x0400, True), (0x0400, True)]
    assert bytes(ql.mem.read(0x7DA2, 2)) == bytes(2)


def test_the_disk_is_reopened_between_two_services_of_a_running_guest(
    disk: Any, image: fdstash.Image, tmp_path: Path
) -> None:
    from fdstash.adapters.qiling import ImageDisk

    steps = iter([{"cache": "none"}, {"cache": "writeback"}, {"mode": "r"}, {"mode": "r+"}])

    class Reopened(ImageDisk):
        def read_sectors(self, lba: int, cnt: int) -> bytes:
            data = super().read_sectors(lba, cnt)
            image.reopen(**next(steps))
            return data

        def write_sectors(self, lba: int, cnt: int, buffer: Any) -> int:
            done = super().write_sectors(lba, cnt, buffer)
            image.reopen(**next(steps))
            return done

    ql = run(Reopened(image, heads=HEADS, sectors_per_track=SECTORS), tmp_path)
    assert results(ql) == [(3, False), (3, False), (0, False), (0x0300, True)]


def test_qilings_own_services_drive_it_once_the_mapper_takes_numbers(
    qiling: Any, disk: Any, image: fdstash.Image, tmp_path: Path
) -> None:
    const = need_package("qiling.const", "qiling")
    from fdstash.adapters.qiling import map_drive

    # Read by CHS, then stop: what Qiling can do by itself.
    code = assemble("B8 01 02 B9 05 03 B6 02 BB 00 80 CD 13 BE A0 7D B4 42 CD 13 F4")
    program = tmp_path / "program.DOS_COM"
    program.write_bytes(code.ljust(0x1A0, b"\xf4") + packet(1, 0x9000, 700))
    place = {"start_cs": "0", "start_ip": "0x7c00", "start_sp": "0x7c00"}
    ql = qiling.Qiling(
        [str(program)],
        str(tmp_path),
        archtype=const.QL_ARCH.A8086,
        ostype=const.QL_OS.DOS,
        profile={"COM": place},
        console=False,
    )
    with pytest.raises(TypeError):
        ql.add_fs_mapper(0x80, disk)
    map_drive(ql, disk)
    ql.remove_fs_mapper(0x80)
    ql.add_fs_mapper(0x80, disk)
    with pytest.raises(KeyError):
        ql.add_fs_mapper(0x80, disk)
    ql.add_fs_mapper("A:\\FILE.TXT", os.devnull)
    assert ql.os.fs_mapper.has_mapping("A:\\FILE.TXT")
    assert not ql.os.fs_mapper.has_mapping(0x81)
    ql.arch.regs.dx = 0x80
    ql.run(timeout=20_000_000)
    assert bytes(ql.mem.read(0x8000, 512)) == sectors(image, lba(3, 2, 5), 1)
    assert bytes(ql.mem.read(0x9000, 512)) == sectors(image, 700, 1)


def test_qilings_own_mode_for_boot_sectors_still_needs_the_workaround(
    qiling: Any, tmp_path: Path
) -> None:
    const = need_package("qiling.const", "qiling")
    program = tmp_path / "program.DOS_MBR"
    program.write_bytes(boot_sector())
    with pytest.raises(TypeError):
        qiling.Qiling(
            [str(program)],
            str(tmp_path),
            archtype=const.QL_ARCH.A8086,
            ostype=const.QL_OS.DOS,
            console=False,
        )


def test_it_is_a_qldisk_with_sectors_chs_and_a_position(disk: Any, image: fdstash.Image) -> None:
    assert isinstance(disk, need_package("qiling.os.disk", "qiling").QlDisk)
    assert (disk.filesize, disk.sector_size, disk.drive_path) == (image.size, 512, 0x80)
    assert disk.host_path == image.name
    assert disk.read_chs(1, 2, 3, 2) == sectors(image, lba(1, 2, 3), 2)
    assert disk.write_chs(0, 1, 1, 2, bytearray(b"\x77" * 2000)) == 1024
    assert (
        sectors(image, lba(0, 1, 1), 3)[1023:1026]
        == b"\x77" + noise(COUNT * 512, 7)[lba(0, 1, 3) * 512 - 512 :][:2]
    )
    disk.lseek(600, 0)
    assert disk.write(b"abc") == 3
    disk.lseek(-3, 1)
    assert (disk.read(3), disk.tell()) == (b"abc", 603)
    disk.close()
    assert image.pread(3, 600) == b"abc"


def test_addresses_and_buffers_are_checked(disk: Any, image: fdstash.Image) -> None:
    for call in (
        lambda: disk.read_sectors(COUNT, 1),
        lambda: disk.read_chs(0, HEADS, 1, 1),
        lambda: disk.write_chs(0, 0, SECTORS + 1, 1, bytes(512)),
        lambda: disk.write_sectors(COUNT - 1, 2, bytes(1024)),
    ):
        with pytest.raises(fdstash.ImageIOError) as caught:
            call()
        assert caught.value.errno == errno.ENXIO
    for count, size in ((1, 511), (-1, 512)):
        with pytest.raises(fdstash.OptionError):
            disk.write_sectors(1, count, bytes(size))
    assert sectors(image, 0, 1) == boot_sector()


def test_a_closed_image_is_a_drive_that_is_not_ready(
    disk: Any, image: fdstash.Image, tmp_path: Path
) -> None:
    from fdstash.adapters.qiling import boot

    ql = boot(disk, tmp_path, log_override=logging.getLogger("quiet"))
    image.close()
    ql.run(timeout=20_000_000)
    assert results(ql) == [(0xAA00, True), (0xAA00, True), (0xAA00, True), (0xAA00, True)]
