"""FLUSH and FUA by the system calls that they make before the reply."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.disks import make_raw
from tests.support.traced import traced_between_marks

# Under a sanitizer the traced program would want a runtime that strace does not bear.
pytestmark = [pytest.mark.root, pytest.mark.slow]

PROGRAM = """
import os, sys
import fdstash
from fdstash.export import NbdServer
from tests.support.nbd_client import *
from tests.support.nbd_client import FUA

path, request = sys.argv[1:]
with fdstash.open(path, "r+", format="raw") as image, NbdServer() as server:
    server.add("e", image, writable=True)
    server.listen_unix(path + ".sock")
    with Client(path + ".sock") as client:
        client.write(b"1" * 4096, 65536)
        assert client.ask(FLUSH).error == 0
        os.access("/mark", os.F_OK)
        eval(request)
        os.access("/mark", os.F_OK)
"""

#: What a request has to make; a ring's writes are no system calls.
REQUESTS = {
    "client.write(b'x' * 4096, 0)": ["pwrite64"],
    "client.write(b'x' * 4096, 0, flags=FUA)": [],
    "client.ask(ZEROES, 0, 65536)": ["fallocate"],
    "client.ask(ZEROES, 0, 65536, flags=FUA)": ["fallocate", "fdatasync"],
    "client.ask(TRIM, 0, 65536)": ["fallocate"],
    "client.ask(TRIM, 0, 65536, flags=FUA)": ["fallocate", "fdatasync"],
    "(client.write(b'x' * 4096, 0), client.ask(FLUSH))": ["pwrite64", "fdatasync"],
    "client.ask(FLUSH)": [],
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_what_is_durable_by_its_reply(ext4_mount: Callable[..., Path], request_: str) -> None:
    path = make_raw(ext4_mount(), 1 << 20)
    only = ["pwrite64", "pwritev", "pwritev2", "fsync", "fdatasync", "fallocate", "io_uring_enter"]
    lines = traced_between_marks(path.with_name("strace"), PROGRAM, [str(path), request_], only)
    calls = [line.split("(")[0] for line in lines if not line.startswith(("<", "+"))]
    found = [name for name in calls if name in only]
    if request_.startswith("client.write") and "FUA" in request_:
        # By the ring, with RWF_DSYNC, or by a call that says so.
        assert "pwrite64" not in found
        assert found
        assert all("RWF_DSYNC" in line for line in lines if line.startswith("pwritev2"))
        return
    assert [name for name in found if name != "io_uring_enter"] == REQUESTS[request_]
