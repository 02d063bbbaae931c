"""A PC in Unicorn boots GRUB from an image of ours, which is reopened while GRUB reads it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fdstash
from fdstash.adapters import ImageBlockDevice
from tests.support.need import missing

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "emulators.md"
RESCUE_DISK = Path("/usr/lib/grub-rescue/grub-rescue-usb.img")
PARTITION_FLAG, ACTIVE = 446, b"\x80"

OK, INVALID, WRITE_PROTECTED, NOT_FOUND = 0x00, 0x01, 0x03, 0x04


@pytest.fixture(scope="module", autouse=True)
def _peers() -> None:
    if importlib.util.find_spec("unicorn") is None:
        missing("unicorn is needed (PyPI)")
    if not RESCUE_DISK.exists():
        missing(f"{RESCUE_DISK} is needed (Debian: grub-rescue-pc)")


def example(module: str) -> Any:
    """Imported by the tests that use it: the sanitizers collect this file too."""
    return importlib.import_module(f"examples.pc.{module}")


def run_example(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "examples.pc", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


def checksum(name: str) -> str:
    """What GRUB's `crc` must answer for a file of the rescue image, an ISO 9660 file system."""
    disk = RESCUE_DISK.read_bytes()
    record = disk.index(f"{name};1".encode()) - 33
    (block,) = struct.unpack_from("<I", disk, record + 2)
    (size,) = struct.unpack_from("<I", disk, record + 10)
    return f"{zlib.crc32(disk[block * 2048 :][:size]):08x}"


# -- GRUB


@pytest.mark.parametrize("bios", [[], ["--chs"]], ids=["packets", "chs"])
def test_grub_reads_and_writes_right_before_while_and_after_its_disk_is_reopened(
    bios: list[str],
) -> None:
    told = json.loads(run_example("--json", "--type", "ls (hd0)/boot", *bios))
    screen = [line for line in told["screen"] if line]
    first = screen.index("grub> ls (hd0)/boot/grub")
    folder = "/boot/grub/i386-pc"
    assert screen[first:] == [
        "grub> ls (hd0)/boot/grub",
        "fonts/ grub.cfg i386-pc/ locale/ roms/",
        "grub> crc /boot/grub/grub.cfg",
        f"{checksum('grub.cfg')}  /boot/grub/grub.cfg",
        f"grub> crc {folder}/partmap.lst",
        f"{checksum('partmap.lst')}  {folder}/partmap.lst",
        "grub> parttool (hd0,1) boot-",
        "Cleared active flag on 0.",
        "error: failure writing sector 0x0 to `hd0'.",
        "grub> parttool (hd0,1) boot-",
        "Cleared active flag on 0.",
        f"grub> crc {folder}/parttool.lst",
        f"{checksum('parttool.lst')}  {folder}/parttool.lst",
        "grub> parttool (hd0,1) boot+",
        "Partition 0 is active now.",
        "grub> ls (hd0)/boot",
        "grub/",
        "grub>",
    ]

    reopened = [step for step in told["steps"] if step["change"]]
    assert [step["change"] for step in reopened] == [
        {"cache": "none"},
        {"cache": "writeback"},
        {"mode": "r"},
        {"mode": "r+"},
        {"path": "moved"},
    ]
    for step in reopened:
        assert step["files_changed"] == step["files"] > 2, step
        assert step["reads_before"] > 0, step
        assert step["reads_meanwhile"] == 3, step
        assert step["reads_after"] > 0, step
    assert all(step["reads_after"] > 0 for step in told["steps"])

    statuses = {(function, status): count for function, status, count in told["statuses"]}
    read, write = (0x02, 0x03) if bios else (0x42, 0x43)
    assert (
        statuses[read, OK]
        == sum(step["reads_meanwhile"] + step["reads_after"] for step in told["steps"])
        + (told["steps"][0]["reads_before"])
    )
    assert statuses[write, WRITE_PROTECTED] > 0
    assert statuses[write, OK] == 2
    assert {status for function, status in statuses if function in (read, write)} == {
        OK,
        WRITE_PROTECTED,
    }
    # What is left on the host is the image in its new place.
    assert len(told["files"]) == reopened[0]["files"]
    assert all(name.startswith("moved/disk") for name in told["files"])


def test_what_grub_wrote_is_in_the_moved_image_and_nothing_else_has_changed(
    tmp_path: Path,
) -> None:
    shown = example("demonstration").Demonstration(tmp_path, example("hard_disk").SUBFORMAT)
    try:
        flags = [shown.image.pread(1, PARTITION_FLAG) for _ in shown.run()]
        path = Path(shown.image.files[0].path)
    finally:
        shown.close()
    # Taken away by the second `parttool`, and given back by the third.
    assert flags == [ACTIVE, ACTIVE, ACTIVE, ACTIVE, b"\0", b"\0", ACTIVE]
    assert path == tmp_path / "moved" / "disk.vmdk"
    assert not (tmp_path / "here").exists()
    original = RESCUE_DISK.read_bytes()
    with fdstash.open(path) as image:
        assert image.pread(len(original), 0) == original


# -- INT 13h, called by a guest of five instructions


class Answer(NamedTuple):
    ah: int
    carry: bool


CALLER = bytes.fromhex(
    "cd13"  # int 13h
    "a30005"  # mov [500h], ax
    "9c"  # pushf
    "8f060205"  # pop word [502h]
    "b400cd16"  # mov ah, 0; int 16h: wait for a key
)
BUFFER, PACKET = 0x1000, 0x600


class Guest:
    """A machine that makes one BIOS call after another."""

    def __init__(self, image: fdstash.Image) -> None:
        self.device = ImageBlockDevice(image)
        self.machine = example("computer").Computer(self.device).machine

    def call(self, drive: int = 0x80, **registers: int) -> Answer:
        self.machine.load(CALLER.ljust(512, b"\0"), drive)
        for name, value in registers.items():
            setattr(self.machine.registers, name, value)
        self.machine.run()
        ax, flags = struct.unpack("<HH", self.machine.read(0x500, 4))
        return Answer(ax >> 8, bool(flags & 1))

    def with_packet(self, function: int, block: int, count: int) -> tuple[Answer, int]:
        """The answer, and how many blocks the packet then says were moved."""
        packet = struct.pack("<BBHHHQ", 16, 0, count, BUFFER, 0, block)
        self.machine.write(PACKET, packet)
        answer = self.call(ax=function << 8, si=PACKET)
        (moved,) = struct.unpack("<H", self.machine.read(PACKET + 2, 2))
        return answer, moved


@pytest.fixture
def image(tmp_path: Path) -> Iterator[fdstash.Image]:
    """Three cylinders in several extents, each block filled with its number."""
    path = tmp_path / "disk.vmdk"
    blocks = 3 * 16 * 63
    fdstash.create(
        path, "vmdk", blocks * 512, subformat=example("hard_disk").SUBFORMAT, extent_size=1 << 19
    )
    with fdstash.open(path, "r+") as made:
        made.pwrite(b"".join(bytes([n % 251]) * 512 for n in range(blocks)), 0)
        yield made


@pytest.fixture
def guest(image: fdstash.Image) -> Guest:
    return Guest(image)


def test_a_write_is_refused_as_protected_while_the_image_is_read_only(
    image: fdstash.Image, guest: Guest
) -> None:
    guest.machine.write(BUFFER, b"written by a guest".ljust(1024, b"."))
    write = {"ax": 0x0302, "bx": BUFFER, "cx": 0x0105, "dh": 7}  # two blocks at (1, 7, 5)
    at = guest.device.lba(1, 7, 5) * 512
    before = image.pread(1024, at)

    image.reopen(mode="r")
    assert guest.call(**write) == (WRITE_PROTECTED, True)
    assert guest.call(ax=0x0100) == (WRITE_PROTECTED, True)
    assert guest.with_packet(0x43, at // 512, 2) == ((WRITE_PROTECTED, True), 0)
    assert image.pread(1024, at) == before

    image.reopen(mode="r+")
    assert guest.call(**write) == (OK, False)
    assert guest.call(ax=0x0100) == (OK, False)
    assert image.pread(1024, at) == b"written by a guest".ljust(1024, b".")
    assert guest.with_packet(0x43, 7, 2) == ((OK, False), 2)
    assert image.pread(1024, 7 * 512) == b"written by a guest".ljust(1024, b".")


def test_reads_by_both_addresses_give_the_same_blocks(guest: Guest) -> None:
    assert guest.call(ax=0x0203, bx=BUFFER, cx=0x0105, dh=7) == (OK, False)
    by_address = guest.machine.read(BUFFER, 3 * 512)
    block = guest.device.lba(1, 7, 5)
    assert by_address == guest.device.read_blocks(block, 3)
    guest.machine.write(BUFFER, bytes(3 * 512))
    assert guest.with_packet(0x42, block, 3) == ((OK, False), 3)
    assert guest.machine.read(BUFFER, 3 * 512) == by_address


def test_what_is_not_on_the_disk_is_not_found(guest: Guest) -> None:
    guest.machine.write(BUFFER, b"untouched")
    assert guest.call(ax=0x0201, bx=BUFFER, cx=0x0301, dh=0) == (NOT_FOUND, True)
    assert guest.call(ax=0x0201, bx=BUFFER, cx=0x0000, dh=0) == (NOT_FOUND, True)
    assert guest.call(ax=0x0202, bx=BUFFER, cx=0x023F, dh=15) == (NOT_FOUND, True)
    assert guest.with_packet(0x42, guest.device.num_blocks - 1, 2) == ((NOT_FOUND, True), 0)
    assert guest.with_packet(0x42, 1 << 60, 1) == ((NOT_FOUND, True), 0)
    assert guest.call(drive=0x81, ax=0x0201, bx=BUFFER, cx=1) == (INVALID, True)
    assert guest.call(ax=0x0500) == (INVALID, True)
    assert guest.machine.read(BUFFER, 9) == b"untouched"


def test_the_bios_tells_the_geometry_and_the_size(guest: Guest) -> None:
    registers = guest.machine.registers
    assert guest.call(ax=0x0800) == (OK, False)
    assert (registers.ch, registers.cl, registers.dh, registers.dl) == (2, 63, 15, 1)
    assert guest.call(ax=0x1500) == (3, False)
    assert (registers.cx, registers.dx) == (0, 3 * 16 * 63)
    assert guest.call(ax=0x4100, bx=0x55AA) == (0x21, False)
    assert (registers.bx, registers.cx) == (0xAA55, 1)
    guest.machine.write(PACKET, struct.pack("<H", 26))
    assert guest.call(ax=0x4800, si=PACKET) == (OK, False)
    table = struct.unpack("<HHIIIQH", guest.machine.read(PACKET, 26))
    assert table == (26, 2, 3, 16, 63, 3 * 16 * 63, 512)


@pytest.mark.parametrize(
    ("boot_sector", "said"),
    [
        ("ebfe", "not at rest after 1000000 instructions"),  # jumps to itself
        ("f4", "halted"),
        ("cd21", "interrupt 0x21 has no service"),
        ("31c0f7f0", "interrupt 0x0 has no service"),  # divides by zero
        ("0f0b", "Invalid instruction"),
    ],
)
def test_a_guest_that_makes_no_progress_is_ended(boot_sector: str, said: str) -> None:
    machine = example("machine")
    made = machine.Machine()
    made.load(bytes.fromhex(boot_sector).ljust(512, b"\0"), 0x80)
    with pytest.raises(machine.MachineError, match=said):
        made.run(instructions=1_000_000)


def test_a_reopen_that_fails_is_told_and_the_guest_goes_on(
    image: fdstash.Image, guest: Guest, tmp_path: Path
) -> None:
    live = example("live_reopen")
    computer = example("computer").Computer(guest.device)
    computer.machine.load(CALLER.ljust(512, b"\0"), 0x80)
    computer.machine.registers.ax = 0x0201
    computer.machine.registers.bx = BUFFER
    computer.machine.registers.cx = 0x0003

    def to_nowhere(prepare: object) -> fdstash.ReopenReport:
        return image.reopen(path=tmp_path / "none" / "disk.vmdk", prepare=prepare)  # type: ignore[arg-type]

    with live.LiveReopen(computer.disk, to_nowhere) as underway:
        computer.run()
    with pytest.raises(fdstash.ReopenError, match="No such file"):
        _ = underway.report
    assert computer.machine.read(BUFFER, 512) == b"\2" * 512


# -- the page


def comparable(screen: str) -> str:
    """Without GRUB's version, which an update of the package changes, and its centring."""
    return re.sub(r" *GNU GRUB  version \S+", "GNU GRUB", screen)


def test_the_page_shows_what_the_command_prints(tmp_path: Path) -> None:
    page = example("page")
    shown = page.screen_in(PAGE.read_text())
    assert "grub> parttool (hd0,1) boot+" in shown
    copy = tmp_path / PAGE.name
    shutil.copy(PAGE, copy)
    copy.write_text(page.replace_screen(PAGE.read_text(), "an old screen"))
    assert page.screen_in(copy.read_text()) == "an old screen"
    run_example("--into", str(copy))
    assert comparable(copy.read_text()) == comparable(PAGE.read_text()), (
        "python -m examples.pc --into docs/emulators.md writes the page anew"
    )
    assert comparable(run_example()) == comparable(shown) + "\n"
