"""`fdstash serve` under a verified load, reopened without pause, its paths renamed meanwhile.

Nothing may be lost, no request and no reopen fail, and the program may not grow.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support import tier
from tests.support.disks import ExtentSpec, make_flat, make_raw
from tests.support.monitor import Client, CommandFailed, file_options, node
from tests.support.nbd_peers import fio, run, uri
from tests.support.qemu_tools import qemu_img
from tests.support.serve import modes_of, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

#: Of each kind of image.
SECONDS = 1800.0 if tier.FULL else 2.0
EXTENTS = 64
SIZE = 128 << 20 if tier.FULL else 8 << 20
#: Of the two loads, each on its half. The second is of sectors, and no
#: multiple of a page: clients that come in a time of O_DIRECT are told to ask for no less.
BLOCKS = (4096, 1536)
#: Bytes of the program, from when the load has run for a while.
MOST_GROWTH = 16 << 20
#: Seconds between renames.
BREATH = 0.001


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory: what is written in an hour is no matter for a disk."""
    made = Path(tempfile.mkdtemp(prefix="fdstash-endurance-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


class Paths:
    """The files of an image in a folder, and a thread that renames both, there and back.

    While `home` is held, every path is where `folder` and `name` say.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.other = f"other-{name}"
        os.link(folder / name, folder / self.other)
        self.inodes = {path.stat().st_ino for path in folder.iterdir()}
        self.home = threading.Lock()
        self.renames = 0
        self._random = random.Random(7)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renamer")

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def move(self) -> None:
        """The folder goes elsewhere for good. `home` is held."""
        self.folder = self.folder.rename(self.folder.with_name(f"images-{self.renames}"))

    def swap_names(self) -> None:
        """Of the two names of the one file that is opened, take the other."""
        self.name, self.other = self.other, self.name

    def _run(self) -> None:
        while not self._stopping.wait(BREATH):
            with self.home:
                one = self._random.choice([self.folder, *sorted(self.folder.iterdir())])
                away = one.rename(one.with_name(f"{one.name}-away"))
                time.sleep(BREATH)
                away.rename(one)
                self.renames += 2

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


class Load:
    """fio on one half of an export, a round after the other; each writes all and verifies all."""

    def __init__(self, where: Path, number: int, until: float) -> None:
        self.where = where
        self.block = BLOCKS[number]
        self.until = until
        half = SIZE // len(BLOCKS)
        self.area = [f"--offset={number * half}", f"--size={half // self.block * self.block}"]
        self.rounds = self.requests = 0
        self.longest = 0.0

    def options(self, seed: int) -> list[str]:
        """Of a round. Each block has the round and the offset all over it, so that one which a
        round has left as it was is found: fio's checksums are right there too.
        """
        options = [f"--bs={self.block}", *self.area, f"--randseed={seed}", "--rw=randwrite"]
        options += ["--verify=pattern", f"--verify_pattern=0x{seed:08x}%o"]
        return [*options, "--do_verify=1", "--verify_fatal=1"]

    def run(self) -> None:
        while self.rounds == 0 or time.monotonic() < self.until:
            self.rounds += 1
            # In turn: each block soon after it is written, or all at the end.
            backlog = ["--verify_backlog=64"] if self.rounds % 2 else []
            self.round(self.rounds, *backlog)
        # What the files must then hold.
        self.rounds += 1
        self.round(self.rounds)

    def round(self, seed: int, *more: str) -> None:
        told = fio(self.where, "--iodepth=16", *self.options(seed), *more, timeout=600)
        assert told["write"]["io_bytes"] == int(self.area[1].partition("=")[2])
        assert told["read"]["io_bytes"] == told["write"]["io_bytes"]
        self.requests += told["read"]["total_ios"] + told["write"]["total_ios"]
        times = [told[each]["clat_ns"]["max"] for each in ("read", "write")]
        self.longest = max(self.longest, *(each / 1e9 for each in times))

    def verify(self, copy: Path) -> None:
        """A copy of the image holds what the last round wrote."""
        options = [*self.options(self.rounds), "--verify_only=1", f"--filename={copy}"]
        done = run(
            "fio", "fio", "--name=verify", "--ioengine=psync", "--verify_state_save=0",
            "--output-format=json", *options,
        )  # fmt: skip
        assert '"error" : 0' in done


class Reopens:
    """Reopens of the node `disk`, one after the other."""

    def __init__(self, client: Client, paths: Paths, format: str) -> None:
        self.client = client
        self.paths = paths
        self.format = format
        self.direct = False
        self.of_mode = self.of_path = self.refused = 0

    def turn(self, number: int) -> None:
        self.direct = not self.direct
        match number % 20:
            case 5:
                with self.paths.home:
                    self.paths.move()
                    self.paths.swap_names()
                    self.change_path()
            case 15:
                self.paths.swap_names()
                try:
                    self.change_path()
                except CommandFailed as error:
                    # A rename was faster.
                    assert "No such file" in error.desc, error
                    self.refused += 1
                    self.paths.swap_names()
                    self.direct = not self.direct
            case 8 | 9 | 18 | 19:
                file = self.client.nodes()["disk"]["children"][0]["node-name"]
                # Which the turn after it ends.
                no_flush = number % 10 == 8 and not self.direct
                self.reopen(file, cache={"direct": self.direct, "no-flush": no_flush})
                self.of_mode += 1
            case _:
                self.client.execute(
                    "block_set_hostcache", node_name="disk", hostcache=not self.direct
                )
                self.of_mode += 1

    def change_path(self) -> None:
        self.reopen(file_options(self.paths.path), cache={"direct": self.direct})
        self.of_path += 1

    def reopen(self, file: Any, **more: Any) -> None:
        self.client.execute("blockdev-reopen", options=[node("disk", file, self.format, **more)])


def made(kind: str, folder: Path) -> Path:
    if kind == "raw":
        return make_raw(folder, SIZE)
    sectors = SIZE // EXTENTS // 512
    names = [f"disk-f{number:03}.vmdk" for number in range(1, EXTENTS + 1)]
    specs = [ExtentSpec("RW", sectors, name=name) for name in names]
    return make_flat(folder, specs, create_type="twoGbMaxExtentFlat").path


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held(pid: int) -> tuple[int, int]:
    """Descriptors and threads."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def at_rest(pid: int) -> tuple[int, int]:
    """The least that it holds within a second: what was about to end has ended."""
    found = [held(pid)]
    while len(found) < 20:
        time.sleep(0.05)
        found.append(held(pid))
    return min(found)


def settled(pid: int, wanted: tuple[int, int]) -> tuple[int, int]:
    """What it holds, as soon as that is what is wanted: the end of a connection takes a moment."""
    until = time.monotonic() + 30
    while (found := held(pid)) != wanted and time.monotonic() < until:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("kind", ["raw", "extents"])
def test_a_running_system_loses_nothing_and_does_not_grow(
    place: Path, tmp_path: Path, kind: str
) -> None:
    folder = place / "images"
    folder.mkdir()
    path = made(kind, folder)
    format, files = ("raw", 1) if kind == "raw" else ("vmdk", EXTENTS + 1)
    qmp, nbd, copy = tmp_path / "qmp", tmp_path / "nbd", place / "copy"
    line = [str(path), "--format", format, "--mode", "r+", "--qmp", str(qmp), "--nbd", str(nbd)]
    # Else it tells of every reopen, and nobody reads that here.
    line += ["--allow-folder", str(place), "--log-level", "warning"]
    with (
        serving(*line, quiet=[qmp, nbd]) as daemon,
        Client(qmp, timeout=120) as client,
        ThreadPoolExecutor(len(BLOCKS)) as pool,
    ):
        pid = daemon.process.pid
        run("nbdinfo", "libnbd-bin", uri(nbd))
        idle = at_rest(pid)
        begun = time.monotonic()
        loads = [Load(nbd, number, begun + SECONDS) for number in range(len(BLOCKS))]
        with Paths(folder, path.name) as paths:
            reopens = Reopens(client, paths, format)
            jobs: list[Future[None]] = [pool.submit(load.run) for load in loads]
            sizes = [resident(pid)]
            for number in itertools.count():
                if all(job.done() for job in jobs):
                    break
                if any(job.done() and job.exception() for job in jobs):
                    break
                reopens.turn(number)
                if number % 100 == 0:
                    wanted = os.O_RDWR | (os.O_DIRECT if reopens.direct else 0)
                    assert modes_of(pid, paths.inodes) == [wanted] * files
                # A sixteenth of the time apart, the first ones of a program that is still warming.
                if time.monotonic() > begun + len(sizes) * SECONDS / 16:
                    sizes.append(resident(pid))
            for job in jobs:
                job.result()
        seconds = time.monotonic() - begun
        assert settled(pid, idle) == idle
        sizes.append(resident(pid))
        run("nbdcopy", "libnbd-bin", uri(nbd), copy)
        with contextlib.suppress(TimeoutError):
            client.sock.settimeout(1)
            client.events.append(client.read())
        assert client.events == []
        assert daemon.end() == 0
    assert daemon.log == ""
    same = qemu_img("compare", "-f", "raw", "-F", format, copy, paths.path)
    assert same.status == 0, same
    for load in loads:
        load.verify(copy)
    assert reopens.of_path > 0
    assert reopens.of_mode > 20
    assert paths.renames > 20
    growth = sizes[-1] - sizes[len(sizes) // 4]
    assert growth < MOST_GROWTH, sizes
    tier.evidence(
        f"endurance-serve-{kind}",
        {
            "files": files,
            "image_bytes": SIZE,
            "seconds": round(seconds, 1),
            "requests": sum(load.requests for load in loads),
            "rounds_verified": {str(load.block): load.rounds for load in loads},
            "longest_request_seconds": round(max(load.longest for load in loads), 3),
            "failed_requests": 0,
            "wrong_blocks": 0,
            "reopens": reopens.of_mode,
            "reopens_to_a_path": reopens.of_path,
            "reopens_refused_as_the_path_was_away": reopens.refused,
            "renames": paths.renames,
            "leaked_descriptors": 0,
            "leaked_threads": 0,
            "resident_bytes": sizes,
            "resident_growth_bytes": growth,
        },
    )
