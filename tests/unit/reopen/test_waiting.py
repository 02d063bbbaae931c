"""What a reopen waits for, and for how long."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fdstash import Image, ReopenError, reopen_all
from fdstash.datapath import Requests
from tests.support.disks import make_raw, noise
from tests.support.images import SIZE
from tests.support.requests import request_in_flight

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.mark.parametrize(
    ("kind", "options", "waits"),
    [
        (Requests.WRITES, {"mode": "r"}, True),
        (Requests.UNALIGNED_WRITES, {"mode": "r"}, True),
        (Requests.UNALIGNED_WRITES, {"cache": "none"}, True),
        (Requests.WRITES, {"cache": "none"}, False),
        (Requests.WRITES, {"prepare": lambda: None}, True),
        (Requests.READS, {"mode": "r", "cache": "none"}, False),
        (Requests.FLUSHES, {"mode": "r", "cache": "none"}, False),
        (Requests.UNALIGNED_WRITES, {"cache": "writethrough"}, False),
    ],
)
def test_a_reopen_waits_for_what_it_would_make_wrong_and_for_nothing_else(
    raw_image: Image, kind: Requests, options: dict[str, Any], waits: bool
) -> None:
    with request_in_flight(raw_image, kind):
        if waits:
            error = refused_but_for_writes(raw_image, timeout=0.05, **options)
            assert isinstance(error, TimeoutError)
            assert (error.errno, error.phase) == (errno.ETIMEDOUT, "gate")
            assert error.file == raw_image.name
        else:
            raw_image.reopen(timeout=30, **options)
    raw_image.reopen(**options)


def refused_but_for_writes(image: Image, **options: Any) -> ReopenError:
    """As `refused`, with a request in flight."""
    files, mode, cache = image.files, image.mode, image.cache
    with pytest.raises(ReopenError) as caught:
        image.reopen(**options)
    assert caught.value.rolled_back
    assert (image.files, image.mode, image.cache) == (files, mode, cache)
    image.pwrite(image.pread(5, 5), 5)  # nothing is held any more
    return caught.value


def test_another_path_waits_for_writes_and_not_for_reads(raw_image: Image, raw: Path) -> None:
    other = make_raw(raw.parent, SIZE, name="other.raw")
    for kind in (Requests.WRITES, Requests.UNALIGNED_WRITES):
        with request_in_flight(raw_image, kind):
            error = refused_but_for_writes(raw_image, path=other, timeout=0.05)
        assert (error.errno, error.phase) == (errno.ETIMEDOUT, "gate")
    with request_in_flight(raw_image, Requests.READS):
        raw_image.reopen(path=other)
        assert raw_image.files[0].path == str(other)
        assert raw_image.pread(100, 0) == noise(SIZE, 1)[:100]
    raw_image.reopen()  # sweeps what the read kept open


def test_a_timeout_of_nothing_is_enough_where_nothing_is_waited_for(image: Image) -> None:
    image.reopen(mode="r", timeout=0)
    image.reopen(cache="none", timeout=0)
    image.reopen(mode="r+", timeout=None)


@pytest.mark.threads
def test_a_second_reopen_waits_for_the_first_at_most_for_its_timeout(raw_image: Image) -> None:
    inside, leave = threading.Event(), threading.Event()

    def prepare() -> None:
        inside.set()
        assert leave.wait(30)

    first = threading.Thread(target=lambda: raw_image.reopen(mode="r", prepare=prepare))
    first.start()
    assert inside.wait(30)
    start = time.monotonic()
    for call in (
        lambda: raw_image.reopen(cache="none", timeout=0.05),
        lambda: reopen_all([(raw_image, {"cache": "none"})], timeout=0.05),
    ):
        with pytest.raises(ReopenError) as caught:
            call()
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.rolled_back
    assert time.monotonic() - start < 20
    leave.set()
    first.join(30)
    assert (raw_image.mode, raw_image.cache) == ("r", "writeback")
