"""Every call of every kind of reopen fails once, under a verified load, and nothing is lost."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.diskset import DiskSet
from tests.support.faultshim import FaultShim
from tests.support.lifecycle import Lifecycle, Source
from tests.support.matrix import Matrix
from tests.support.positions import Tally
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
BY_NAME = {kind.name: kind for kind in KINDS}

#: Layouts, and the kinds of change of each image in them.
SINGLE = [((layout,), (kind,)) for layout in ("raw", "vmdk") for kind in KINDS]
PAIRS = [(layouts, (kind, kind)) for layouts in (("raw", "raw"), ("raw", "vmdk")) for kind in KINDS]
MIXED = [
    (("raw", "vmdk"), (BY_NAME["setfl"], BY_NAME["link"])),
    (("vmdk", "raw"), (BY_NAME["copy"], BY_NAME["readonly"])),
    (("vmdk", "raw"), (BY_NAME["readwrite"], BY_NAME["proc"])),
]
DEVICES = [
    # What a device's driver does at an open is not known: the first change takes another route,
    # and so does the one after it.
    (("device",), (kind,))
    for kind in KINDS
    if kind.path not in ("link", "copy") and not (kind.stash or kind.fresh)
]
SCENARIOS = [
    *((system, *case) for system in ("tmpfs", "ext4") for case in (*SINGLE, *PAIRS, *MIXED)),
    *(("loop", *case) for case in DEVICES),
]


def scenario_name(scenario: tuple[str, tuple[str, ...], tuple[Kind, ...]]) -> str:
    system, layouts, kinds = scenario
    names = dict.fromkeys(kind.name for kind in kinds)
    return f"{'+'.join(layouts)} on {system}: {'+'.join(names)}"


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
    if FULL:
        evidence(
            "fault_matrix",
            {
                "positions": tried.total(),
                "absorbed": tried.total("absorbed"),
                "failed_and_taken_back": tried.total("failed"),
                "not_reached": tried.total("not_reached"),
                "kinds": tried.kinds,
                "classes": tried.classes,
                "seconds": round(time.monotonic() - started),
            },
        )


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
                subject = Subject(DiskSet(folder, layout, seed, device), seed)
                stack.callback(subject.close)
                pairs.append((subject, kind))
            made = Matrix(shim, pairs, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.mark.parametrize("scenario", SCENARIOS, ids=scenario_name)
def test_every_call_of_a_reopen_may_fail(
    scenario: tuple[str, tuple[str, ...], tuple[Kind, ...]],
    matrix: Callable[..., Matrix],
    tally: Tally,
) -> None:
    made = matrix(*scenario)
    made.run(scenario_name(scenario), tally)
    assert not made.findings, "\n".join(made.findings)


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
            made = Lifecycle(shim, disks, source)
            stack.callback(made.close)
            return made

        yield make


WHERE = [("tmpfs", "raw"), ("tmpfs", "vmdk"), ("ext4", "raw"), ("ext4", "vmdk"), ("loop", "device")]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize(("system", "layout"), WHERE)
def test_every_call_of_an_open_may_fail(
    system: str,
    layout: str,
    source: Source,
    lifecycle: Callable[..., Lifecycle],
    tally: Tally,
) -> None:
    made = lifecycle(system, layout, source)
    made.fail_open(f"{layout} on {system}: open by {source.name}", tally)
    assert not made.findings, "\n".join(made.findings)


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
@pytest.mark.parametrize(("system", "layout"), WHERE)
def test_every_call_of_extract_fds_may_fail(
    system: str, layout: str, *, again: bool, lifecycle: Callable[..., Lifecycle], tally: Tally
) -> None:
    made = lifecycle(system, layout, Source("path"))
    name = f"{layout} on {system}: extract_fds{' again' if again else ''}"
    made.fail_extract(name, tally, again=again)
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
    made.fail_close(f"{layout} on {system}: close of {source.name}", tally)
    assert not made.findings, "\n".join(made.findings)
