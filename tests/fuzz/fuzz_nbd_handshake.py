"""Fuzzes the server's side of the NBD handshake: whole, and cut into pieces.

python tests/fuzz/fuzz_nbd_handshake.py [corpus folder] [-max_total_time=SECONDS]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from fdstash.export.handshake import Described, Handshake, HandshakeError
from fdstash.export.protocol import Flag
from tests.fuzz.harness import run

EXPORTS = {
    name: Described(name, "a disk", 1 << 30, Flag.HAS_FLAGS, 1, 4096, 1 << 25, allocation=True)
    for name in ("", "disk")
}
#: Bytes that the server may answer to a byte of the client's: a list of exports is the longest.
MOST = 20


class Offered:
    """Two exports."""

    def find(self, name: str) -> Described | None:
        return EXPORTS.get(name)

    def names(self) -> Mapping[str, str]:
        return {name: each.description for name, each in EXPORTS.items()}


def outcome(pieces: list[bytes]) -> tuple[bytes, object, object, bytes]:
    """What was sent until the end, however it came."""
    handshake = Handshake(Offered())
    sent = b""
    failure = None
    for piece in pieces:
        try:
            sent += handshake.receive(piece)
        except HandshakeError as error:
            failure = str(error)
            break
    rest = handshake.rest if handshake.agreed else b""
    return sent, handshake.agreed, failure, rest


def one_input(data: bytes) -> None:
    cut = data[0] % 61 + 1 if data else 1
    data = data[1:]
    sent, agreed, failure, rest = outcome([data])
    pieces = [data[at : at + cut] for at in range(0, len(data), cut)]
    sent_in_pieces, *others = outcome(pieces)
    assert others == [agreed, failure, rest]
    # An error ends the answers to all that came with it.
    assert sent_in_pieces == sent or failure is not None
    assert len(sent_in_pieces) <= MOST * len(data) + 200


if __name__ == "__main__":
    run(one_input, "nbd_handshake")
