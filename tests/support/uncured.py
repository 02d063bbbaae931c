"""Reopens with a cure left out: what the tests of hazards show the need of each cure by."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from fdstash import Image
from fdstash.cache import cache_mode
from fdstash.graph import open_flags
from fdstash.swap import Swap

__all__ = ["bare_exchange", "every", "running"]


def bare_exchange(
    image: Image,
    *,
    mode: str | None = None,
    cache: str | None = None,
    by_path: bool = False,
    prove: bool = True,
    settle: bool = True,
) -> None:
    """The descriptors of a reopen, without its gate; where told so, without other steps too.

    What the image says of itself stays as it was.
    """
    direct = cache_mode(cache or image.cache).direct
    swap = Swap(image._state.graph.files)
    swap.want(open_flags(writable=(mode or image.mode) == "r+", direct=direct), by_path=by_path)
    try:
        if not swap.acquire(10) and prove:
            swap.prove()
        swap.exchange()
        if settle:
            swap.settle()
    finally:
        swap.abandon()


@contextlib.contextmanager
def running(*functions: Callable[[], None]) -> Iterator[None]:
    """Each function again and again on a thread of its own, as long as the block runs.

    The first exception of any of them ends them all, and is raised at the end.
    """
    stop = threading.Event()
    failed: list[BaseException] = []

    def repeat(function: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                function()
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            failed.append(error)
            stop.set()

    threads = [threading.Thread(target=repeat, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def every(seconds: float, times: int) -> Iterator[int]:
    """0, 1, 2, ... at most one for each `seconds`."""
    for number in range(times):
        yield number
        time.sleep(seconds)
