"""Row 10: nobody has to wait for an open that hangs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import fdstash
from fdstash import ReopenError
from tests.support.disks import noise
from tests.support.fuse import HeldFs
from tests.support.images import SIZE
from tests.support.kernel import open_descriptors


@pytest.mark.root
@pytest.mark.threads
def test_row_10_an_open_that_hangs_keeps_nobody_waiting_and_is_given_up(
    stopped_fuse: HeldFs, raw: Path
) -> None:
    (stopped_fuse.backing / "disk.raw").write_bytes(noise(SIZE, 1))
    path = stopped_fuse.folder / "disk.raw"
    errors: list[ReopenError] = []
    with fdstash.open(path, format="raw") as image, fdstash.open(raw, format="raw") as other:
        descriptors = open_descriptors()

        def reopen() -> None:
            with pytest.raises(ReopenError) as caught:
                image.reopen(mode="r+", timeout=1)
            errors.append(caught.value)

        stopped_fuse.hold_opens()
        reopening = threading.Thread(target=reopen)
        reopening.start()
        stopped_fuse.wait_open_hanging()
        reads = 0
        while reopening.is_alive():
            start = time.monotonic()
            assert image.pread(512, 1024) == noise(SIZE, 1)[1024:1536]
            assert time.monotonic() - start < 0.9
            other.reopen(cache="none")
            other.reopen(cache="writeback")
            reads += 1
        reopening.join()
        assert reads > 10
        assert isinstance(errors[0], TimeoutError)
        assert (errors[0].phase, errors[0].rolled_back) == ("acquire", True)
        assert fdstash.pending_opens() == 1
        stopped_fuse.release_opens()
        deadline = time.monotonic() + 20
        while fdstash.pending_opens() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert fdstash.pending_opens() == 0
        assert open_descriptors() == descriptors
        image.reopen(mode="r+")
        image.pwrite(b"x", 0)
