"""Eight threads read and write verified blocks while a ninth reopens without pause.

Lean on purpose: the same tests run under AddressSanitizer and ThreadSanitizer.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import fdstash
from fdstash import ClosedError, FDStash, Image, reopen_all
from tests.support.disks import make_raw
from tests.support.seen import assert_as_kernel_says
from tests.support.thread_disk import LAYOUTS, Disk, reopen_for, short_turns
from tests.support.tier import FULL, count, evidence
from tests.support.verify import VerifiedLoad

pytestmark = [pytest.mark.threads, pytest.mark.usefixtures("no_descriptor_leaks")]

THREADS = 8
SECONDS = 60.0 if FULL else 3.0
LEAST_REOPENS = 10
#: No multiple of anything: each block has neighbours in its page that others write.
BLOCK = 1000


@pytest.fixture(autouse=True)
def quick_turns() -> Iterator[None]:
    """Or the ninth thread would hardly ever have the interpreter's lock."""
    with short_turns():
        yield


@pytest.fixture(params=LAYOUTS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path, request.param)
    yield made
    made.close()


def test_no_request_fails_and_no_byte_is_wrong_while_an_image_is_reopened(disk: Disk) -> None:
    with disk.open() as image:
        options = disk.reopens(writing=True)
        load = VerifiedLoad(image, BLOCK, THREADS, flush_every=50).fill()
        with load:
            reopens = reopen_for(SECONDS, lambda: image.reopen(**next(options)))
        load.report.assert_clean(at_least=1000)
        assert_as_kernel_says(image)
        load.verify().assert_clean()
        report = load.report
    with disk.open("r") as again:
        load.verify(again).assert_clean()
    assert reopens > LEAST_REOPENS
    evidence(
        f"threads-{disk.format}",
        {
            "threads": THREADS,
            "seconds": SECONDS,
            "reopens": reopens,
            "requests": report.requests,
            "failed_requests": report.failed_requests,
            "wrong_blocks": report.wrong_blocks,
            "longest_request_ns": report.longest_request_ns,
        },
    )


def test_readers_see_every_kind_of_reopen_and_right_bytes(disk: Disk) -> None:
    """Among them those to `r` and back, which no writer would survive."""
    with disk.open() as image:
        load = VerifiedLoad(image, BLOCK, THREADS).fill()
        load.write = False
        options = disk.reopens(writing=False)
        with load:
            reopens = reopen_for(SECONDS / 2, lambda: image.reopen(**next(options)))
        load.report.assert_clean(at_least=1000)
        assert_as_kernel_says(image)
    assert reopens > LEAST_REOPENS


def test_all_blocks_are_everybodys(disk: Disk) -> None:
    """The same block from eight threads, one at a time: pages shared by all of them."""
    with disk.open() as image:
        options = disk.reopens(writing=True)
        load = VerifiedLoad(image, 80, THREADS, shared=True, region=(36_000, 8000)).fill()
        with load:
            reopen_for(SECONDS / 2, lambda: image.reopen(**next(options)))
        load.report.assert_clean(at_least=1000)
        load.verify().assert_clean()


def test_several_images_are_reopened_together_under_load(tmp_path: Path) -> None:
    with ExitStack() as stack:
        disks = []
        for layout in LAYOUTS:
            (tmp_path / layout).mkdir()
            disks.append(Disk(tmp_path / layout, layout))
            stack.callback(disks[-1].close)
        images = [stack.enter_context(disk.open()) for disk in disks]
        options = [disk.reopens(writing=True) for disk in disks]
        loads = [VerifiedLoad(image, BLOCK, 4).fill() for image in images]

        def reopen() -> None:
            reopen_all([(image, next(kind)) for image, kind in zip(images, options, strict=True)])

        with loads[0], loads[1]:
            reopens = reopen_for(SECONDS / 2, reopen)
        for load in loads:
            load.report.assert_clean(at_least=500)
            load.verify().assert_clean()
    assert reopens > LEAST_REOPENS


def use(image: Image, number: int, started: threading.Barrier, outcome: list[object]) -> None:
    """Every kind of request until the image is closed; what ended it."""
    calls: list[Callable[[], object]] = [
        lambda: image.pread(700, number * 900),
        lambda: image.pwrite(b"x" * 700, number * 900),
        lambda: image.pwrite(b"y" * 4096, 4096 * number, fua=True),
        lambda: image.preadv([bytearray(100), bytearray(4000)], 4096 * number),
        image.flush,
        lambda: image.zero(5000, 4096 * number, unmap=number % 2 == 0),
        lambda: image.files,
        lambda: list(image.extents(10_000, 0)),
        lambda: image.reopen(cache="none" if number % 2 else "writeback"),
    ]
    started.wait(30)
    try:
        for call in itertools.cycle(calls):
            call()
    except BaseException as error:  # noqa: BLE001 - looked at by the test
        outcome.append(type(error))


def test_every_call_during_close_succeeds_or_says_closed(disk: Disk) -> None:
    for _ in range(count(200)):
        image = disk.open()
        outcome: list[object] = []
        started = threading.Barrier(THREADS + 1)
        threads = [
            threading.Thread(target=use, args=(image, number, started, outcome))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        started.wait(30)
        time.sleep(0.01)
        image.close()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert outcome == [ClosedError] * THREADS


def test_close_waits_for_the_requests_that_were_let_in(disk: Disk) -> None:
    """Writes that were acknowledged before the close are in the file after it."""
    for _ in range(count(100)):
        image = disk.open()
        load = VerifiedLoad(image, BLOCK, THREADS).fill().start()
        load.wait_requests(50)
        image.close()
        load.stop()
        assert {type(failure.error) for failure in load.report.failures} <= {ClosedError}
        assert load.report.wrong_blocks == 0
        with disk.open() as again:
            load.verify(again).assert_clean()


def test_handles_may_be_dropped_while_others_work(tmp_path: Path) -> None:
    """Images are opened, used and closed on eight threads at once, over the same files."""
    path = make_raw(tmp_path, 1 << 16)
    expected = path.read_bytes()
    failed: list[BaseException] = []

    def live(number: int) -> None:
        try:
            for turn in range(count(1000)):
                with fdstash.open(path, "r", format="raw") as image, FDStash() as stash:
                    image.reopen(cache="none" if turn % 2 else "writethrough")
                    image.extract_fds(stash)
                    image.reopen(cache="writeback", stash=stash)
                    assert image.pread(999, number) == expected[number : number + 999]
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
