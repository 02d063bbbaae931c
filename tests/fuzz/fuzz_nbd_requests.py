"""Fuzzes the requests of the NBD protocol: bytes into a socket of a real export.

python tests/fuzz/fuzz_nbd_requests.py [corpus folder] [-max_total_time=SECONDS]
"""

from __future__ import annotations

import functools
import socket
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import fdstash
from fdstash.export import NbdServer
from tests.fuzz.harness import run
from tests.support.nbd_client import Client, request

SIZE = 1 << 20
_MAGIC = b"\x25\x60\x95\x13"


@functools.cache
def _serving() -> str:
    """A sparse VMDK and a raw image, each under its name; for as long as the process lives."""
    folder = Path(tempfile.mkdtemp(prefix="fdstash-fuzz-"))
    fdstash.create(folder / "sparse.vmdk", "vmdk", SIZE, subformat="monolithicSparse")
    (folder / "raw").write_bytes(bytes(SIZE))
    server = NbdServer()
    where = str(folder / "nbd.sock")
    server.listen_unix(where)
    images = [
        fdstash.open(folder / "raw", "r+", format="raw"),
        fdstash.open(folder / "sparse.vmdk", "r+"),
    ]
    for name, image in zip(("raw", "sparse"), images, strict=True):
        server.add(name, image, name=name, writable=True)

    def end() -> None:
        threading.main_thread().join()
        server.close()
        for image in images:
            image.close()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    threading.Thread(target=end, name="fuzz-end").start()
    return where


def one_input(data: bytes) -> None:
    where = _serving()
    if not data:
        return
    name = "raw" if data[0] & 1 else "sparse"
    # A pair of bytes stands for the magic, which nobody guesses.
    sent = b"".join(_MAGIC if byte == b"\0M" else byte for byte in _tokens(data[1:]))
    with Client(where, name, structured=bool(data[0] & 2)) as client:
        try:
            client.socket.sendall(sent)
            client.socket.shutdown(socket.SHUT_WR)
            while client.socket.recv(1 << 16):
                pass
        except (ConnectionError, BrokenPipeError):
            pass  # hung up on
    with Client(where, name) as other:
        other.socket.sendall(request(0, 0, 512, cookie=1))
        reply = other.reply()
        assert (reply.cookie, reply.error, len(reply.data)) == (1, 0, 512)


def _tokens(data: bytes) -> list[bytes]:
    """The bytes, with each pair of zero and M kept together."""
    found = []
    at = 0
    while at < len(data):
        n = 2 if data[at : at + 2] == b"\0M" else 1
        found.append(data[at : at + n])
        at += n
    return found


if __name__ == "__main__":
    run(one_input, "nbd_requests")
