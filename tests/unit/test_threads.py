"""Eight threads do I/O while a ninth reopens without pause: nothing fails, nothing is wrong."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import ClosedError, FDStash, Image
from tests.support.kernel import open_descriptors
from tests.support.tier import FULL, evidence
from tests.support.verify import VerifiedLoad

pytestmark = pytest.mark.threads

SECONDS = 60.0 if FULL else 3.0
SIZE = 1 << 20
#: A block of 1000 bytes shares sectors and pages with its neighbours.
BLOCKS = (4096, 1000)


def make(folder: Path, layout: str) -> Path:
    path = folder / f"disk.{layout}"
    if layout == "raw":
        fdstash.create(path, "raw", SIZE)
    else:
        fdstash.create(
            path, "vmdk", SIZE, subformat="twoGbMaxExtentFlat", extent_size=SIZE // 5 // 512 * 512
        )
    return path


def variants(image: Image, path: Path) -> list[dict[str, Any]]:
    """Reopens that a writing load must not notice, one after the other."""
    link = path.with_name(f"link-{path.name}")
    os.link(path, link)
    return [
        {"cache": "none"},
        {"cache": "directsync"},
        {"cache": "writeback"},
        {"cache": "writethrough"},
        {"path": os.fspath(path)},
        {"path": os.fspath(link)},
        {"cache": "unsafe"},
        {"path": os.fspath(path), "cache": "none"},
        {"cache": "writeback", "prepare": lambda: image.pread(512, 0)},
    ]


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("layout", ["raw", "vmdk"])
def test_eight_threads_notice_no_reopen(tmp_path: Path, layout: str, block_size: int) -> None:
    path = make(tmp_path, layout)
    descriptors = open_descriptors()
    with fdstash.open(path, "r+", format=layout) as image:
        options = variants(image, path)
        load = VerifiedLoad(image, block_size=block_size, threads=8, flush_every=200)
        load.fill()
        reopens = 0
        with load:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                image.reopen(**options[reopens % len(options)])
                reopens += 1
                if reopens % 7 == 0:  # handed out: from now on by /proc and by the stash
                    with FDStash() as stash:
                        image.extract_fds(stash)
                        image.reopen(stash=stash)
        report = load.report
        report.assert_clean(at_least=1000)
        load.verify().assert_clean()
        assert reopens > len(options)
    assert open_descriptors() == descriptors
    print(f"{layout}, {block_size}: {report.requests} requests, {reopens} reopens")
    evidence(
        f"threads_{layout}_{block_size}",
        {
            "seconds": SECONDS,
            "threads": 8,
            "reopens": reopens,
            "requests": report.requests,
            "failed_requests": report.failed_requests,
            "wrong_blocks": report.wrong_blocks,
            "longest_request_ns": report.longest_request_ns,
        },
    )


def test_readers_notice_no_change_of_mode(tmp_path: Path) -> None:
    path = make(tmp_path, "vmdk")
    with fdstash.open(path, "r+") as image:
        load = VerifiedLoad(image, block_size=1000, threads=8, write=False)
        load.fill()
        with load:
            end = time.monotonic() + SECONDS
            turn = 0
            while time.monotonic() < end:
                image.reopen(
                    mode="r" if turn % 2 == 0 else "r+", cache=("none", "writeback")[turn % 3 % 2]
                )
                turn += 1
        load.report.assert_clean(at_least=1000)


def test_close_lets_every_request_end_or_refuses_it(tmp_path: Path) -> None:
    path = make(tmp_path, "vmdk")
    for turn in range(5):
        image = fdstash.open(path, "r+")
        outcomes: list[BaseException | None] = []

        def work(image: Image, outcomes: list[BaseException | None], seed: int) -> None:
            data = bytes([seed]) * 1000
            try:
                while True:
                    image.pwrite(data, seed * 5000)
                    assert image.pread(1000, seed * 5000) == data
            except ClosedError:
                outcomes.append(None)
            except BaseException as error:  # noqa: BLE001 - judged below
                outcomes.append(error)

        threads = [
            threading.Thread(target=work, args=(image, outcomes, seed)) for seed in range(1, 9)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.02 * turn)
        image.close()
        for thread in threads:
            thread.join(30)
        assert outcomes == [None] * 8
