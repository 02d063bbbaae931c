"""The handshake without sockets: each option, each way to get it wrong, each way to cut it."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

import pytest

from fdstash.export.handshake import Described, Handshake, HandshakeError
from fdstash.export.protocol import Flag, Reply
from tests.support.tier import count

FLAGS = Flag.HAS_FLAGS | Flag.SEND_FLUSH
UNSUP, POLICY, INVALID, UNKNOWN, TOO_BIG = (
    Reply.ERR_UNSUP,
    Reply.ERR_POLICY,
    Reply.ERR_INVALID,
    Reply.ERR_UNKNOWN,
    Reply.ERR_TOO_BIG,
)
START = struct.pack(">I", 3)
ALLOCATION = b"base:allocation"


class Offered:
    def __init__(self) -> None:
        self.exports = {
            name: Described(name, f"about {name}", 1 << 20, FLAGS, 512, 4096, 1 << 25, name != "b")
            for name in ("", "a", "b")
        }

    def find(self, name: str) -> Described | None:
        return self.exports.get(name)

    def names(self) -> Mapping[str, str]:
        return {name: each.description for name, each in self.exports.items()}


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def counted(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def go(name: bytes, *infos: int) -> bytes:
    return counted(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def context(name: bytes, *queries: bytes) -> bytes:
    return counted(name) + struct.pack(">I", len(queries)) + b"".join(map(counted, queries))


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    found = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x0003E889045565A9
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


@pytest.fixture
def handshake() -> Handshake:
    made = Handshake(Offered())
    assert made.greeting == b"NBDMAGICIHAVEOPT\0\3"
    assert made.receive(START) == b""
    return made


def kinds(handshake: Handshake, number: int, data: bytes = b"") -> list[int]:
    found = replies(handshake.receive(option(number, data)))
    assert {each for each, _, _ in found} == {number}
    return [kind for _, kind, _ in found]


def test_go_tells_size_flags_and_block_sizes_and_chooses(handshake: Handshake) -> None:
    found = replies(handshake.receive(option(7, go(b"a", 1, 2, 3))))
    infos = [data for _, kind, data in found if kind == 3]
    assert infos[0] == struct.pack(">HQH", 0, 1 << 20, FLAGS)
    assert struct.pack(">HIII", 3, 512, 4096, 1 << 25) in infos
    assert b"\0\1a" in infos
    assert b"\0\2about a" in infos
    assert found[-1][1:] == (1, b"")
    assert handshake.agreed is not None
    assert handshake.agreed.export.name == "a"
    assert not handshake.agreed.structured


def test_info_chooses_nothing(handshake: Handshake) -> None:
    assert kinds(handshake, 6, go(b""))[-1] == 1
    assert handshake.agreed is None
    assert kinds(handshake, 7, go(b""))[-1] == 1
    assert handshake.agreed is not None


def test_an_unknown_export_can_be_followed_by_a_known_one(handshake: Handshake) -> None:
    assert kinds(handshake, 7, go(b"nothing")) == [UNKNOWN]
    assert kinds(handshake, 6, go(b"nothing")) == [UNKNOWN]
    assert handshake.agreed is None
    assert kinds(handshake, 7, go(b"a"))[-1] == 1


def test_export_name_is_answered_with_padding_unless_the_client_does_without() -> None:
    for flags, padding in ((1, 124), (3, 0), (0, 124)):
        handshake = Handshake(Offered())
        sent = handshake.receive(struct.pack(">I", flags) + option(1, b"a"))
        assert sent == struct.pack(">QH", 1 << 20, FLAGS) + bytes(padding)
        assert handshake.agreed is not None


def test_what_follows_the_choice_is_kept(handshake: Handshake) -> None:
    handshake.receive(option(1, b"") + b"a request" * 10)
    assert handshake.rest == b"a request" * 10


def test_list_names_every_export(handshake: Handshake) -> None:
    found = replies(handshake.receive(option(3)))
    assert [data for _, _, data in found] == [
        counted(b"") + b"about ",
        counted(b"a") + b"about a",
        counted(b"b") + b"about b",
        b"",
    ]
    assert [kind for _, kind, _ in found] == [2, 2, 2, 1]


def test_abort_is_acknowledged_and_ends(handshake: Handshake) -> None:
    assert kinds(handshake, 2) == [1]
    assert handshake.ended
    assert handshake.receive(option(3)) == b""


def test_tls_is_refused_by_policy(handshake: Handshake) -> None:
    assert kinds(handshake, 5) == [POLICY]


@pytest.mark.parametrize("number", [0, 4, 11, 12, 99, (1 << 32) - 1])
def test_unknown_options_are_unsupported_and_skipped(handshake: Handshake, number: int) -> None:
    assert kinds(handshake, number, b"whatever it may be") == [UNSUP]
    assert kinds(handshake, 3)[-1] == 1


def test_contexts_are_chosen_for_the_export_that_is_chosen(handshake: Handshake) -> None:
    assert kinds(handshake, 8) == [1]
    found = replies(handshake.receive(option(10, context(b"a", ALLOCATION))))
    assert [kind for _, kind, _ in found] == [4, 1]
    assert found[0][2][4:] == ALLOCATION
    handshake.receive(option(7, go(b"a")))
    assert handshake.agreed is not None
    assert handshake.agreed.structured
    assert handshake.agreed.allocation


@pytest.mark.parametrize(
    ("export", "queries", "chosen"),
    [
        (b"a", (), b""),
        (b"a", (b"base:",), b""),
        (b"a", (b"qemu:allocation-depth",), b""),
        (b"a", (b"x", ALLOCATION), b"a"),
        (b"b", (ALLOCATION,), b""),
    ],
)
def test_contexts_that_are_not_chosen(
    handshake: Handshake, export: bytes, queries: tuple[bytes, ...], chosen: bytes
) -> None:
    kinds(handshake, 8)
    assert kinds(handshake, 10, context(export, *queries))[-1] == 1
    handshake.receive(option(7, go(export)))
    assert handshake.agreed is not None
    assert handshake.agreed.allocation == (chosen == export)


def test_the_last_choice_of_contexts_counts_and_only_for_its_export(handshake: Handshake) -> None:
    kinds(handshake, 8)
    assert kinds(handshake, 10, context(b"a", ALLOCATION)) == [4, 1]
    assert kinds(handshake, 10, context(b"a")) == [1]
    assert kinds(handshake, 10, context(b"", ALLOCATION)) == [4, 1]
    handshake.receive(option(7, go(b"a")))
    assert handshake.agreed is not None
    assert not handshake.agreed.allocation


@pytest.mark.parametrize("queries", [(), (b"base:",), (ALLOCATION,)])
def test_contexts_are_listed(handshake: Handshake, queries: tuple[bytes, ...]) -> None:
    kinds(handshake, 8)
    assert kinds(handshake, 9, context(b"a", *queries)) == [4, 1]
    assert kinds(handshake, 9, context(b"b", *queries)) == [1]
    assert kinds(handshake, 9, context(b"nothing", *queries)) == [UNKNOWN]


@pytest.mark.parametrize("number", [9, 10])
def test_contexts_need_structured_replies(handshake: Handshake, number: int) -> None:
    assert kinds(handshake, number, context(b"a", ALLOCATION)) == [INVALID]


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (3, b"x"),
        (5, b"x"),
        (8, b"x"),
        *(
            (number, data)
            for number in (6, 7)
            for data in (b"", b"\0", go(b"a")[:-1], go(b"a") + b"x")
        ),
        (7, counted(b"a") + b"\0\2\0\0"),
        (7, b"\xff\xff\xff\xff"),
        (7, go(b"a\0b")),
        (7, go(b"\xff")),
        (7, go(b"n" * 4097)),
        *(
            (10, data)
            for data in (b"", counted(b"a"), context(b"a", b"q")[:-1], context(b"a") + b"x")
        ),
        (10, counted(b"a") + b"\xff\xff\xff\xff"),
        (10, context(b"a", b"\xff")),
    ],
)
def test_senseless_data_is_invalid_and_the_next_option_is_served(
    handshake: Handshake, number: int, data: bytes
) -> None:
    if number == 10:
        kinds(handshake, 8)
    assert kinds(handshake, number, data) == [INVALID]
    assert kinds(handshake, 3)[-1] == 1
    assert handshake.agreed is None


def test_a_long_option_is_refused_and_skipped(handshake: Handshake) -> None:
    data = option(7, bytes(1 << 19))
    sent = b"".join(handshake.receive(data[at : at + 999]) for at in range(0, len(data), 999))
    assert [kind for _, kind, _ in replies(sent)] == [TOO_BIG]
    assert kinds(handshake, 3)[-1] == 1


@pytest.mark.parametrize(
    "data",
    [
        option(7)[:12] + struct.pack(">I", (1 << 32) - 1),
        option(1, bytes(40000)),
        option(1, b"nothing"),
        option(1, b"\xff"),
        b"NOTANOPT" + bytes(8),
    ],
)
def test_what_cannot_be_answered_ends_it(handshake: Handshake, data: bytes) -> None:
    with pytest.raises(HandshakeError):
        handshake.receive(data)


@pytest.mark.parametrize("flags", [4, 1 << 31, 7])
def test_unknown_flags_end_it(flags: int) -> None:
    with pytest.raises(HandshakeError):
        Handshake(Offered()).receive(struct.pack(">I", flags))


def test_options_without_end_end_it(handshake: Handshake) -> None:
    with pytest.raises(HandshakeError):
        handshake.receive(option(3) * 2000)


def test_it_is_the_same_however_the_bytes_come() -> None:
    whole = (
        START
        + option(8)
        + option(99, b"unknown")
        + option(10, context(b"a", ALLOCATION))
        + option(5)
        + option(7, go(b"nothing"))
        + option(7, go(b"a", 3))
        + b"rest"
    )
    alone = Handshake(Offered())
    wanted = alone.receive(whole)
    chance = random.Random(4)
    for _ in range(count(400)):
        cut = Handshake(Offered())
        at, sent = 0, b""
        while at < len(whole):
            n = chance.randrange(1, 40)
            sent += cut.receive(whole[at : at + n])
            at += n
        assert sent == wanted
        assert (cut.agreed, cut.rest) == (alone.agreed, b"rest")
