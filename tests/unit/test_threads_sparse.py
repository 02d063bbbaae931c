"""Threads grow a sparse image while others look at it, and one reopens it without pause.

Grains lie in the regions of several threads, and tables are evicted all the time. Lean on
purpose: the same tests run under AddressSanitizer and ThreadSanitizer.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fdstash import ClosedError, Image, clusters
from tests.support.region_load import RegionLoad
from tests.support.seen import assert_as_kernel_says
from tests.support.sparse_files import guest_bytes, sparse_trouble
from tests.support.thread_disk import SPARSE, Disk, reopen_for, short_turns
from tests.support.tier import FULL, count, evidence
from tests.support.verify import VerifiedLoad

pytestmark = [pytest.mark.threads, pytest.mark.usefixtures("no_descriptor_leaks")]

SECONDS = 60.0 if FULL else 3.0
REGIONS = 5
LEAST_REOPENS = 10
#: Where all threads of a second load write blocks of BLOCK bytes, each its own.
SHARED = (1_000_003, 300_000)
BLOCK = 1000


@pytest.fixture(autouse=True)
def short_of_everything(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of tables in memory, and of turns with the interpreter's lock."""
    monkeypatch.setattr(clusters, "PAGE_BYTES", 0)
    with short_turns():
        yield


@pytest.fixture(params=SPARSE)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path, request.param)
    yield made
    made.close()


def regions(image: Image) -> list[tuple[int, int]]:
    """All but what is shared, in pieces that end inside of grains."""
    after = sum(SHARED)
    step = (image.size - after) // (REGIONS - 1)
    starts = range(after, image.size - step + 1, step)
    return [(0, SHARED[0]), *((start, step) for start in starts)]


@contextmanager
def lookers(image: Image) -> Iterator[list[BaseException]]:
    """Two threads that ask for all but bytes, and for the parent's bytes; what they met."""
    ended = threading.Event()
    met: list[BaseException] = []
    below = image.backing
    parent = b"" if below is None else below.pread(below.size, 0)

    def look_below() -> None:
        seen = image.backing
        if seen is not None:
            assert seen.pread(70_000, 60_001) == parent[60_001:130_001]
            assert sum(extent.length for extent in seen.extents()) == len(parent)

    def look() -> None:
        calls: list[Callable[[], object]] = [
            lambda: assert_whole(image),
            lambda: image.files,
            lambda: image.limits,
            lambda: image.format_info,
            look_below,
        ]
        for call in itertools.cycle(calls):
            if ended.is_set():
                return
            try:
                call()
            except ClosedError:
                pass  # of a view of the parent, where a reopen brought another graph
            except BaseException as error:  # noqa: BLE001 - looked at by the test
                met.append(error)
                return

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield met
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)


def assert_whole(image: Image) -> None:
    """Its extents are all of it."""
    at = 0
    for extent in image.extents():
        assert extent.offset == at
        at += extent.length
    assert at == image.size


def check_files(disk: Disk, load: RegionLoad, shared: VerifiedLoad | None = None) -> None:
    """What is in the files, by themselves and through another image."""
    assert not list(sparse_trouble(disk.path))
    load.verify(guest_bytes(disk.path))
    with disk.open() as again:
        load.verify(again.pread(again.size, 0))
        if shared is not None:
            shared.verify(again).assert_clean()


def test_every_byte_is_right_while_an_image_grows_and_is_reopened(disk: Disk) -> None:
    with disk.open() as image, ExitStack() as stack:
        options = disk.reopens(writing=True)
        load = RegionLoad(image, regions(image))
        shared = VerifiedLoad(image, BLOCK, 3, region=SHARED, flush_every=50).fill()
        with lookers(image) as met, shared, load:
            reopens = reopen_for(SECONDS, lambda: image.reopen(**next(options)))
        stack.close()
        assert not met, met
        shared.report.assert_clean(at_least=100)
        load.assert_clean(at_least=100)
        assert_as_kernel_says_of_its_own(image)
        shared.verify().assert_clean()
        load.verify(image.pread(image.size, 0))
        report = shared.report
    check_files(disk, load, shared)
    assert reopens > LEAST_REOPENS
    if disk.layout == "delta":
        evidence(
            "threads-sparse",
            {
                "threads": REGIONS + 3 + 2,
                "seconds": SECONDS,
                "reopens": reopens,
                "requests": load.requests + report.requests,
                "failed_requests": report.failed_requests,
                "wrong_blocks": report.wrong_blocks,
                "longest_request_ns": max(
                    report.longest_request_ns, round(load.longest_request * 1e9)
                ),
            },
        )


def assert_as_kernel_says_of_its_own(image: Image) -> None:
    if image.backing is None:
        assert_as_kernel_says(image)


def test_writers_are_refused_or_heard_while_the_mode_changes(disk: Disk) -> None:
    with disk.open() as image:
        options = disk.reopens(writing=False)
        load = RegionLoad(image, regions(image), may_be_refused=True)
        with load:
            reopens = reopen_for(SECONDS / 2, lambda: image.reopen(**next(options)))
        load.assert_clean(at_least=100)
        load.verify(image.pread(image.size, 0))
    check_files(disk, load)
    assert reopens > LEAST_REOPENS


def test_close_keeps_every_write_that_was_acknowledged(disk: Disk) -> None:
    for _ in range(count(100)):
        image = disk.open()
        load = VerifiedLoad(image, BLOCK, 6, write_share=0.9).start()
        load.wait_requests(60)
        image.close()
        load.stop()
        assert {type(failure.error) for failure in load.report.failures} <= {ClosedError}
        assert load.report.wrong_blocks == 0
        assert not list(sparse_trouble(disk.path))
        with disk.open() as again:
            load.verify(again).assert_clean()
