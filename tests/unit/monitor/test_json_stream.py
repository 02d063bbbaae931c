"""The JSON of a client: in any pieces, back in step after anything, within bounds."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdstash.monitor import json_stream
from fdstash.monitor.errors import QmpError
from fdstash.monitor.json_stream import MAX_NESTING, JsonStream
from tests.support.tier import count

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda children: st.lists(children) | st.dictionaries(st.text("abc-_é\"'\\"), children),
    max_leaves=20,
)


def read(*pieces: bytes, limit: int = 1 << 20) -> list[Any]:
    stream = JsonStream(limit)
    found = [value for piece in pieces for value in stream.feed(piece)]
    return [value.desc if isinstance(value, QmpError) else value for value in found]


@given(VALUES, st.booleans(), st.integers(0, 2**32))
@settings(max_examples=count(4000))
def test_what_json_writes_is_read_in_any_pieces(value: Any, ascii_only: bool, seed: int) -> None:
    text = json.dumps([value], ensure_ascii=ascii_only).encode()
    cuts = sorted(random.Random(seed).sample(range(len(text)), min(3, len(text))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(*pieces) == [[value]]
    assert read(*(bytes([byte]) for byte in text)) == [[value]]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{}{}", [{}, {}]),
        (" \t\r\n{} \n", [{}]),
        ("1 2 ", [1, 2]),
        ('"x"', ["x"]),
        ("{'execute': 'quit'}", [{"execute": "quit"}]),
        (r'["\u0041\ud83d\ude00\"\'\\\/\b\f\n\r\t"]', [["A😀\"'\\/\b\f\n\r\t"]]),
        ("[18446744073709551615, 18446744073709551616]", [[2**64 - 1, 2.0**64]]),
        ("[-9223372036854775808, 1.5e3, -0]", [[-(2**63), 1500.0, 0]]),
    ],
)
def test_values_are_read(text: str, found: list[Any]) -> None:
    assert read(text.encode()) == found


# The texts are those of qemu-storage-daemon; tests/interop compares more.
@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"}", "expecting value"),
        (b'{"a":1,}', "expecting value"),
        (b'{"a" 1}', "missing : in object pair"),
        (b'{"a":foo}', "invalid keyword 'foo'"),
        (b'{"a":1,"a":2}', "duplicate key"),
        (b"{1:2}", "key is not a string in object"),
        (b"[1 2]", "expected separator in list"),
        (b'{"a":1 "b":2}', "expected separator in dict"),
        (b"\x01", "stray '\x01'"),
        (b'"a\n', "stray '\"a\n'"),
        (b'["\\u0000"]', "\\u0000 is not a valid Unicode character"),
        (b'["\\ud800"]', "\\ud800 is not a valid Unicode character"),
        (b'["\\x"]', "invalid escape sequence '\\x'"),
        (b'["\x80"]', "invalid UTF-8 sequence in string"),
        (b"[1e999]", "a number is out of range"),
        (b"[01 ]\n", "stray '01'"),
        (b"[1-2 ]\n", "stray '1-2'"),
    ],
)
def test_bad_json_is_one_error_and_the_next_command_is_read(text: bytes, error: str) -> None:
    assert read(text, b'{"next":1}') == [f"JSON parse error, {error}", {"next": 1}]


@pytest.mark.parametrize("end", [b"\n", b"\0", b"\xfe", b"\xff"])
def test_after_a_lexical_error_all_is_skipped_to_a_control_character(end: bytes) -> None:
    found = read(b'{"a": ?, "b": "}{', b'"lost": 1}', end, b'{"next":1}')
    assert found == ["JSON parse error, stray '?'", {"next": 1}]


def test_nesting_is_bounded_and_no_recursion() -> None:
    deep = b"[" * MAX_NESTING + b"]" * MAX_NESTING
    (value,) = read(deep)
    for _ in range(MAX_NESTING - 1):
        (value,) = value
    assert value == []
    assert read(b"[" + deep)[0] == "JSON nesting depth limit exceeded"
    assert read(b"[" * 5000)[:4] == ["JSON nesting depth limit exceeded"] * 4


def test_a_token_and_a_command_are_bounded() -> None:
    assert read(b'"', b"x" * 1000, b'"\n{}', limit=999) == ["JSON token size limit exceeded", {}]
    assert read(b"[", *[b'"aaaaaaaaaa",'] * 200, b"\n", limit=999)[0] == (
        "JSON token size limit exceeded"
    )
    assert "JSON token count limit exceeded" in read(b"[" + b"1," * (1 << 16))


def test_a_huge_token_in_small_pieces_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    plain = json_stream._MORE['"']

    class Counting:
        def match(self, data: bytes, at: int) -> Any:
            nonlocal looked
            looked += len(data) - at
            return plain.match(data, at)

    monkeypatch.setitem(json_stream._MORE, '"', Counting())
    assert read(b'"', *[b"x" * 64] * 2000, b'"') == ["x" * 128000]
    assert looked <= 128001


@given(st.binary(max_size=200) | st.text(string.printable, max_size=200).map(str.encode))
@settings(max_examples=count(4000))
def test_after_any_bytes_a_newline_and_brackets_bring_it_back(junk: bytes) -> None:
    stream = JsonStream()
    list(stream.feed(junk))
    # Ends a string with an error, or what is open with a bad value.
    list(stream.feed(b"\n\x01\n"))
    assert list(stream.feed(b'{"next":1}')) == [{"next": 1}]
