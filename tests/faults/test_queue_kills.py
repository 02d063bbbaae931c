"""A load of a queue is killed: nothing is left, and every block is one that was written."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fdstash
from fdstash.queue import ENGINES
from tests.support import tier
from tests.support.kernel import ofd_locks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SIZE = 1 << 20
BLOCK = 4096
KILLS = 100
PROGRAM = "from fdstash.cli.main import main; main()"
COMMAND = (sys.executable, "-c", PROGRAM, "bench", "io", "--rw", "randrw", "--verify")
REOPENS = ("--reopen", "none,writeback", "--every", "0.001", "--runtime", "60")


def killed(words: list[str], folder: Path, seed: int, ready: Path | None = None) -> None:
    with subprocess.Popen(
        [*COMMAND, *REOPENS, *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as program:
        # The moment counts from when it has an image open.
        while program.poll() is None and not _has_image(program.pid, ready):
            time.sleep(0.002)
        time.sleep(random.Random(seed).random() * 0.3)
        program.send_signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL, "the load ended before it was killed"


def _has_image(pid: int, path: Path | None) -> bool:
    """Open, and without a name if it is one of its own."""
    wanted = str(path) if path is not None else "disk.raw (deleted)"
    links = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return any(link.endswith(wanted) for link in links)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_image_of_its_own_is_gone(tmp_path: Path, engine: str) -> None:
    for seed in range(max(1, tier.count(KILLS) // len(ENGINES))):
        killed(["--engine", engine, "--size", "1M", "--dir", str(tmp_path)], tmp_path, seed)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["raw", "vmdk"])
def test_every_block_is_one_that_was_written(tmp_path: Path, engine: str, kind: str) -> None:
    path = tmp_path / "disk"
    for seed in range(max(1, tier.count(KILLS) // len(ENGINES) // 2)):
        path.unlink(missing_ok=True)
        subformat = {"subformat": "monolithicSparse"} if kind == "vmdk" else {}
        fdstash.create(path, kind, SIZE, **subformat)
        killed(["--engine", engine, "-f", kind, str(path)], tmp_path, seed, path)
        assert list(ofd_locks(path)) == []
        with fdstash.open(path, "r+", format=kind) as image:
            data = image.pread(SIZE, 0)
        written = 0
        for at in range(0, SIZE, BLOCK):
            block = data[at : at + BLOCK]
            # Each sixteen bytes tell their place and generation. A write that is cut off may
            # leave a part of the next generation, page by page; a block is one page.
            stamps = set(struct.iter_unpack("<QQ", block))
            if stamps == {(0, 0)}:
                continue
            written += 1
            assert {place for place, _ in stamps} == set(range(at, at + BLOCK, 16))
            assert len({generation for _, generation in stamps}) == 1
        assert written or kind == "vmdk"
