"""What does a request to an export cost?

fio's nbd engine is the client of both. Servers are measured in turn; a sample is the time from one
request to the next, so that a ratio below 1 is ours being faster.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.results import Comparison, Target, question
from tests.support import tier
from tests.support.nbd_peers import fio
from tests.support.need import need_program, plain_environment
from tests.support.qemu_tools import qemu_img

ASKED = question(
    __file__,
    "What does a request of 4 KiB cost, reads and writes at random, 16 at once, on tmpfs?",
    "qemu-storage-daemon, and nbdkit's null, which does no I/O",
)

SIZE = 256 << 20
PAIRS = 15 if tier.FULL else 4
MILLISECONDS = 1500 if tier.FULL else 300

_OURS = """
import sys, fdstash
from fdstash.export import NbdServer
with fdstash.open(sys.argv[1], "r+", format=sys.argv[2]) as image, NbdServer() as server:
    server.add("e", image, writable=True)
    server.listen_unix(sys.argv[3])
    sys.stdin.read()
"""


@contextmanager
def serving(command: list[str], where: Path) -> Iterator[Path]:
    server = subprocess.Popen(command, env=plain_environment(), stdin=subprocess.PIPE)
    try:
        while not where.exists():
            assert server.poll() is None
            time.sleep(0.01)
        yield where
    finally:
        server.terminate()
        server.communicate()


def ours(image: Path, format: str, where: Path) -> list[str]:
    return [sys.executable, "-c", _OURS, str(image), format, str(where)]


def qemus(image: Path, format: str, where: Path) -> list[str]:
    program = need_program("qemu-storage-daemon", "qemu-system-common")
    return [
        program,
        "--blockdev",
        f"driver=file,node-name=file,filename={image}",
        "--blockdev",
        f"driver={format},node-name=disk,file=file",
        "--nbd-server",
        f"addr.type=unix,addr.path={where}",
        "--export",
        "type=nbd,id=e,node-name=disk,name=,writable=on",
    ]


def null(where: Path) -> list[str]:
    return [need_program("nbdkit", "nbdkit"), "-f", "-U", str(where), "null", f"{SIZE}"]


def made(folder: Path, name: str, extents: int) -> tuple[Path, str]:
    """A disk filled with bytes: raw, or a flat VMDK of so many extents."""
    raw = folder / f"{name}.raw"
    block = bytes(range(256)) * 4096
    with raw.open("wb") as file:
        for _ in range(SIZE // len(block)):
            file.write(block)
    if extents == 0:
        return raw, "raw"
    part = SIZE // extents
    lines = []
    with raw.open("rb") as file:
        for number in range(extents):
            (folder / f"{name}-{number}").write_bytes(file.read(part))
            lines.append(f'RW {part // 512} FLAT "{name}-{number}" 0')
    raw.unlink()
    path = folder / f"{name}.vmdk"
    head = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
    head += 'createType="twoGbMaxExtentFlat"\n'
    path.write_text(head + "\n".join(lines) + '\nddb.adapterType = "ide"\n')
    assert qemu_img("info", "-f", "vmdk", path).status == 0
    return path, "vmdk"


def cost(where: Path) -> float:
    """Nanoseconds from one request to the next."""
    job = fio(
        where,
        "--rw=randrw",
        "--bs=4k",
        "--iodepth=16",
        f"--size={SIZE}",
        "--time_based",
        f"--runtime={MILLISECONDS}ms",
        "--norandommap",
    )
    return 1e9 / (job["read"]["iops"] + job["write"]["iops"])


@pytest.mark.parametrize("extents", [0, 8, 64], ids=["raw", "vmdk-8", "vmdk-64"])
@pytest.mark.parametrize("peer", ["qemu", "null"])
def test_export(benchmark: BenchmarkFixture, tmpfs: Path, extents: int, peer: str) -> None:
    folder = tmpfs / f"export-{extents}-{peer}"
    folder.mkdir()
    image, format = made(folder, "ours", extents)
    their_command = null(folder / "b")
    target = Target("ratio", 1 / 0.8)
    if peer == "qemu":
        theirs, _ = made(folder, "theirs", extents)
        their_command = qemus(theirs, format, folder / "b")
        target = Target("ratio", 1 / 1.5 if extents else 1.0)
    found: list[float] = []
    found_of_peer: list[float] = []
    with (
        serving(ours(image, format, folder / "a"), folder / "a") as at_ours,
        serving(their_command, folder / "b") as at_theirs,
    ):

        def turn() -> None:
            found_of_peer.append(cost(at_theirs))
            found.append(cost(at_ours))

        benchmark.group = ASKED.name
        benchmark.pedantic(turn, rounds=PAIRS)  # type: ignore[no-untyped-call]
    for path in folder.iterdir():
        path.unlink()
    if benchmark.stats is None:
        return
    row = Comparison.of(
        f"{image.suffix[1:]}, {extents or 1} files, {peer}", found, found_of_peer, target
    )
    ASKED.add(row)
    benchmark.extra_info.update(row.record())
