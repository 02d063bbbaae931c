"""The end of an image: closed, dropped, or left open by the program."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import fdstash
from fdstash import ClosedError, FDStash, Image
from fdstash.datapath import Requests
from tests.support.disks import FlatDisk
from tests.support.requests import request_in_flight
from tests.support.seen import locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def every_request(image: Image) -> dict[str, Callable[[], object]]:
    """Each call that needs an open image."""
    stash = FDStash()
    return {
        "size": lambda: image.size,
        "limits": lambda: image.limits,
        "files": lambda: image.files,
        "backing": lambda: image.backing,
        "format_info": lambda: image.format_info,
        "pread": lambda: image.pread(1, 0),
        "preadv": lambda: image.preadv([bytearray(1)], 0),
        "preadv of many": lambda: image.preadv([bytearray(1), bytearray(1)], 0),
        "pwrite": lambda: image.pwrite(b"1", 0),
        "pwritev": lambda: image.pwritev([b"1"], 0),
        "zero": lambda: image.zero(512, 0),
        "trim": lambda: image.trim(4096, 0),
        "flush": image.flush,
        "resize": lambda: image.resize(512),
        "extents": image.extents,
        "reopen": image.reopen,
        "reopen with a path": lambda: image.reopen(path="other"),
        "extract_fds": lambda: image.extract_fds(stash),
        "as_file": image.as_file,
        "context": image.__enter__,
    }


def test_after_close_every_call_is_a_closed_error(image: Image) -> None:
    calls = every_request(image)
    image.close()
    image.close()
    assert image.closed
    for name, call in calls.items():
        with pytest.raises(ClosedError):
            print(name, call())


def test_an_image_that_was_closed_is_closed_for_good(raw: Path) -> None:
    image = fdstash.open(raw)
    image.close()
    with pytest.raises(ClosedError), image:
        pass


def test_leaving_the_context_closes_image_and_locks(flat: FlatDisk) -> None:
    with pytest.raises(KeyError), fdstash.open(flat.path, "r+") as image:
        raise KeyError
    assert image.closed
    assert [locked_bytes(path) for path in flat.files] == [[]] * 5


def test_an_image_that_is_dropped_warns_and_is_closed(flat: FlatDisk) -> None:
    def drop() -> None:
        fdstash.open(flat.path, "r+").pwrite(b"written", 0)
        gc.collect()

    with pytest.warns(ResourceWarning, match=r"unclosed image.*disk\.vmdk"):
        drop()
    assert [locked_bytes(path) for path in flat.files] == [[]] * 5


def test_an_image_that_was_closed_or_never_opened_warns_of_nothing(flat: FlatDisk) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image: Image | None = fdstash.open(flat.path)
        assert image is not None
        image.close()
        image = None
        with pytest.raises(FileNotFoundError):
            fdstash.open(flat.path.with_suffix(".none"))
        gc.collect()


def test_an_open_image_at_the_end_of_the_program_only_warns(flat: FlatDisk) -> None:
    code = "import sys, fdstash; i = fdstash.open(sys.argv[1], 'r+'); i.pwrite(b'end', 0)"
    command = [sys.executable, "-W", "always", "-c", code, str(flat.path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert flat.guest_bytes()[:3] == b"end"


@pytest.mark.threads
def test_close_waits_for_requests_in_flight_and_refuses_new_ones(raw: Path) -> None:
    image = fdstash.open(raw, "r+", format="raw")
    closing = threading.Thread(target=image.close)
    with request_in_flight(image, Requests.READS):
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        with pytest.raises(ClosedError):
            image.pread(1, 0)
    closing.join(30)
    assert not closing.is_alive()


@pytest.mark.threads
def test_threads_that_close_and_read_meet_closed_error_or_data(raw: Path) -> None:
    expected = raw.read_bytes()
    wrong: list[object] = []

    def work(image: Image, start: threading.Barrier, last: bool) -> None:
        start.wait()
        try:
            for _ in range(20):
                if image.pread(4096, 8192) != expected[8192:12288]:
                    wrong.append("other bytes")
                image.pwrite(expected[:100], 0)
            if last:
                image.close()
        except ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            wrong.append(error)

    for _ in range(20):
        image = fdstash.open(raw, "r+", format="raw")
        start = threading.Barrier(4)
        threads = [threading.Thread(target=work, args=(image, start, n < 2)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert image.closed
    assert not wrong
