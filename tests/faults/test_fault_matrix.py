"""Every call of every kind of reopen fails once, under a verified load, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fdstash import reopen
from fdstash.datapath import DataPath
from fdstash.hostfile import HostFile
from fdstash.locking import LockSet
from fdstash.path_change import PathChange
from fdstash.slot_change import SlotChange
from fdstash.swap import Swap
from tests.support.diskset import GROWING, DiskSet
from tests.support.faultshim import FaultShim
from tests.support.lifecycle import Lifecycle, Source
from tests.support.load import Hang
from tests.support.matrix import Matrix
from tests.support.positions import EVERY, FAULTS, PROPERTY, Position, Tally
from tests.support.subject import Kind, Subject
from tests.support.tier import FULL, evidence

pytestmark = [pytest.mark.preload, pytest.mark.root]

PATH = frozenset({"path"})
PROC = frozenset({"proc"})
SETFL = frozenset({"setfl"})
STASH = frozenset({"stash"})

DIRECT = ("writeback", "none")
KINDS = [
    Kind("setfl", SETFL, cache=DIRECT),
    Kind("setfl-back", SETFL, cache=("none", "writeback")),
    Kind("setfl-first", SETFL, cache=DIRECT, fresh=True),
    Kind("proc", PROC, cache=DIRECT, shared=True),
    Kind("proc-back", PROC, cache=("none", "writeback"), shared=True),
    Kind("own-path", PATH, cache=DIRECT, path="own"),
    Kind("stash", STASH, cache=DIRECT, stash=True),
    Kind("readonly", PROC, mode=("r+", "r")),
    Kind("readwrite", PROC, mode=("r", "r+")),
    Kind("stash-readwrite", STASH, mode=("r", "r+"), stash=True),
    Kind("link", PATH, path="link"),
    Kind("link-timeout", PATH, path="link", timeout=60),
    Kind("copy", PATH, path="copy"),
    Kind("copy-direct", PATH, path="copy", cache=DIRECT),
    Kind("cache-and-mode", PROC, mode=("r+", "r"), cache=DIRECT),
    Kind("cache-and-mode-back", PROC, mode=("r", "r+"), cache=("none", "writeback")),
    Kind("writethrough", frozenset({"keep"}), cache=("writeback", "writethrough")),
    Kind("directsync", SETFL, cache=("writeback", "directsync")),
    Kind("prepare", SETFL, cache=DIRECT, prepare=True),
]
BACKING = [
    Kind("backing", PATH, backing="link"),
    Kind("backing-direct", PATH, backing="link", cache=DIRECT),
]
BY_NAME = {kind.name: kind for kind in KINDS}

#: Layouts, and the kinds of change of each image in them.
SINGLE = [
    *(((layout,), (kind,)) for layout in ("raw", "vmdk", *GROWING) for kind in KINDS),
    *(((layout,), (kind,)) for layout in GROWING for kind in BACKING),
]
PAIRS = [(layouts, (kind, kind)) for layouts in (("raw", "raw"), ("raw", "vmdk")) for kind in KINDS]
MIXED = [
    (("raw", "vmdk"), (BY_NAME["setfl"], BY_NAME["link"])),
    (("vmdk", "raw"), (BY_NAME["copy"], BY_NAME["readonly"])),
    (("vmdk", "raw"), (BY_NAME["readwrite"], BY_NAME["proc"])),
    (("delta", "cowd"), (BY_NAME["readonly"], BY_NAME["readonly"])),
    (("cowd", "delta"), (BY_NAME["readwrite"], BY_NAME["copy"])),
]
TIMED = [
    Kind("readonly-timeout", PROC, mode=("r+", "r"), timeout=60),
    Kind("readwrite-timeout", PROC, mode=("r", "r+"), timeout=60),
]
DEVICES = [
    # What a device's driver does at an open is not known: the first change takes another route,
    # and so does the one after it.
    (("device",), (kind,))
    for kind in (*KINDS, *TIMED)
    if kind.path not in ("link", "copy") and not (kind.stash or kind.fresh)
]
SCENARIOS = [
    (system, *case)
    for system in ("tmpfs", "ext4")
    for case in (*SINGLE, *PAIRS, *MIXED)
    # What grows makes the same calls on either, and takes the longest.
    if FULL or system == "tmpfs" or not set(case[0]) & set(GROWING)
] + [("loop", *case) for case in DEVICES]


def names_of(scenario: tuple[str, tuple[str, ...], tuple[Kind, ...]]) -> tuple[str, str]:
    """Where, and what."""
    system, layouts, kinds = scenario
    names = dict.fromkeys(kind.name for kind in kinds)
    return f"{'+'.join(layouts)} on {system}", "+".join(names)


SOURCES = [
    Source("path"),
    Source("path-direct", cache="none"),
    Source("path-readonly", mode="r", probe=True),
    Source("first-of-many", growing=True),
    Source("stash", stash="all"),
    Source("stash-direct", stash="all", cache="directsync"),
    Source("stash-that-does-not-fit", stash="other"),
    Source("stash-with-locks", stash="locks"),
    Source("descriptor", descriptor=True),
]


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    """What all tests have tried; printed, and kept by the full tier."""
    tried = Tally()
    started = time.monotonic()
    yield tried
    print(*tried.lines(), sep="\n")
    if EVERY:
        evidence(
            "fault_matrix",
            {
                "positions": tried.total(),
                "absorbed": tried.total("absorbed"),
                "failed_and_taken_back": tried.total("failed"),
                "not_reached": tried.total("not_reached"),
                "kinds": tried.kinds,
                "requests_of_the_loads": tried.requests,
                "classes": {name: tried.classes.get(name, 0) for name in FAULTS},
                "seconds": round(time.monotonic() - started),
            },
        )


@pytest.fixture(autouse=True)
def positions_tried(tally: Tally, record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Told to the summary of the run (conftest.py)."""
    before = tally.total()
    yield
    record_property(PROPERTY, tally.total() - before)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, ext4_mount: Callable[..., Path]
) -> Iterator[Callable[[str], Path]]:
    """A folder on a file system of that kind."""
    made: list[str] = []

    def make(system: str) -> Path:
        if system == "ext4":
            return ext4_mount(64 << 20)
        made.append(tempfile.mkdtemp(prefix="fdstash-matrix-", dir="/dev/shm"))
        return Path(made[-1])

    yield make
    for folder in made:
        shutil.rmtree(folder)


@pytest.fixture
def matrix(
    shim: FaultShim, place: Callable[[str], Path], loop_device: Callable[..., str]
) -> Iterator[Callable[..., Matrix]]:
    shim.within("_native")
    with ExitStack() as stack:

        def make(
            system: str, layouts: tuple[str, ...], kinds: tuple[Kind, ...], **options: float
        ) -> Matrix:
            pairs = []
            for seed, (layout, kind) in enumerate(zip(layouts, kinds, strict=True)):
                device = loop_device(1 << 20, 4096) if layout == "device" else None
                folder = Path() if device else place(system)
                pairs.append((Subject(DiskSet(folder, layout, seed, device), seed), kind))
            made = Matrix(shim, pairs, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: " ".join(names_of(s)))
def test_every_call_of_a_reopen_may_fail(
    scenario: tuple[str, tuple[str, ...], tuple[Kind, ...]],
    matrix: Callable[..., Matrix],
    tally: Tally,
) -> None:
    made = matrix(*scenario)
    made.run(*names_of(scenario), tally)
    assert not made.findings, "\n".join(made.findings)


# --------------------------------------------------------------- that it can fail


def nothing(*_arguments: object) -> None:
    pass


def abandon_and_spoil(change: SlotChange) -> None:
    """As if the rollback had written to a file of the image."""
    REAL_ABANDON(change)
    fd = os.open(change.state.name, os.O_WRONLY)
    os.pwrite(fd, b"spoiled" * 20_000, 4096)  # more than the load will have written again
    os.close(fd)


def stay_with_the_new(change: PathChange) -> None:
    change._new = None


REAL_ABANDON = SlotChange.abandon
REAL_UNDO = reopen._undo

COMMIT_FAILS = Position("dup3", 1, errno.EINTR, 4)
SETFL_FAILS = Position("F_SETFL", 0, errno.EIO, 4)
SYNC_FAILS = Position("fdatasync", 0, errno.EIO)
#: What is broken on purpose; where and at which position that shows, and by which words.
SABOTAGES: dict[str, tuple[tuple[object, str, object], tuple[str, Position], str]] = {
    "no rollback": (
        (SlotChange, "rollback", nothing),
        ("setfl+setfl", Position("F_SETFL", 1, errno.EIO, 4)),
        "cache went from writeback to none",
    ),
    "no rollback of a path": (
        (PathChange, "rollback", stay_with_the_new),
        ("link+setfl", SETFL_FAILS),
        "files went from",
    ),
    "a rollback that fails": (
        (reopen, "_undo", lambda changes: REAL_UNDO(changes) and False),
        ("setfl", SETFL_FAILS),
        "not rolled back",
    ),
    "new descriptions are kept": (
        (Swap, "abandon", nothing),
        ("proc", COMMIT_FAILS),
        "went from None to",
    ),
    "write locks are kept": (
        (LockSet, "narrow", nothing),
        ("readwrite", COMMIT_FAILS),
        "the locks of an image of mode r are",
    ),
    "bytes are spoiled": (
        (SlotChange, "abandon", abandon_and_spoil),
        ("setfl", SETFL_FAILS),
        "wrong bytes",
    ),
    "an error of write-back is forgotten": (
        (DataPath, "sync", DataPath.flush_files),
        ("link", SYNC_FAILS),
        "flush says []",
    ),
    "descriptions handed out are not marked": (
        (HostFile, "mark_shared", nothing),
        ("proc", Position("getrlimit", 0, errno.EACCES)),
        "a description that others hold went from",
    ),
}


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_the_matrix_sees(
    sabotage: str, matrix: Callable[..., Matrix], monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, (names, position), words = SABOTAGES[sabotage]
    kinds = tuple(BY_NAME[name] for name in names.split("+"))
    made = matrix("tmpfs", ("raw",) * len(kinds), kinds)
    made.fail_at(position)
    assert made.findings == []
    monkeypatch.setattr(*patch)
    made.fail_at(position)
    monkeypatch.undo()
    assert made.findings
    assert words in made.findings[0]


def test_the_matrix_sees_a_gate_that_stays_closed(
    matrix: Callable[..., Matrix], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = matrix("tmpfs", ("raw",), (BY_NAME["setfl"],), patience=2)
    monkeypatch.setattr(DataPath, "release", nothing)
    with pytest.raises(Hang, match="a request of the load hangs"):
        made.fail_at(SETFL_FAILS)
    monkeypatch.undo()
    made.subjects[0].image._state.core.release()
    made.beyond_repair = False


# ------------------------------------------------------------ open, extract_fds, close


@pytest.fixture
def lifecycle(
    shim: FaultShim, place: Callable[[str], Path], loop_device: Callable[..., str]
) -> Iterator[Callable[..., Lifecycle]]:
    shim.within("_native")
    with ExitStack() as stack:

        def make(system: str, layout: str, source: Source) -> Lifecycle:
            device = loop_device(1 << 20, 4096) if system == "loop" else None
            disks = DiskSet(Path() if device else place(system), layout, 0, device)
            made = Lifecycle(shim, f"{layout} on {system}", disks, source)
            stack.callback(made.close)
            return made

        yield make


WHERE = [("tmpfs", "raw"), ("tmpfs", "vmdk"), ("ext4", "raw"), ("ext4", "vmdk"), ("loop", "device")]
#: Their close writes entries back, and is in the matrix of requests.
SPARSE = [("tmpfs", layout) for layout in GROWING]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize(("system", "layout"), [*WHERE, *SPARSE])
def test_every_call_of_an_open_may_fail(
    system: str,
    layout: str,
    source: Source,
    lifecycle: Callable[..., Lifecycle],
    tally: Tally,
) -> None:
    made = lifecycle(system, layout, source)
    made.fail_open(tally)
    assert not made.findings, "\n".join(made.findings)


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
@pytest.mark.parametrize(("system", "layout"), [*WHERE, *SPARSE])
def test_every_call_of_extract_fds_may_fail(
    system: str, layout: str, *, again: bool, lifecycle: Callable[..., Lifecycle], tally: Tally
) -> None:
    made = lifecycle(system, layout, Source("path"))
    made.fail_extract(tally, again=again)
    assert not made.findings, "\n".join(made.findings)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize(("system", "layout"), WHERE)
def test_every_call_of_a_close_may_fail(
    system: str,
    layout: str,
    source: Source,
    lifecycle: Callable[..., Lifecycle],
    tally: Tally,
) -> None:
    made = lifecycle(system, layout, source)
    made.fail_close(tally)
    assert not made.findings, "\n".join(made.findings)
