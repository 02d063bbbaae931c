"""Fuzzes what a monitor does with the bytes of a client, up to the checked arguments of a command.

python tests/fuzz/fuzz_qmp_json.py [corpus folder] [-max_total_time=SECONDS]
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from fdstash.monitor.errors import QmpError
from fdstash.monitor.json_stream import JsonStream
from fdstash.monitor.options import parse
from fdstash.monitor.vocabulary import SCHEMA
from tests.fuzz.harness import run

LIMIT = 4096


def one_input(data: bytes) -> None:
    whole = read([data])
    assert same(whole, read([data[i : i + 1] for i in range(len(data))]))
    for value in whole:
        if isinstance(value, dict):
            check_command(value)
    # Whatever it was, a client gets back into step.
    stream = JsonStream(LIMIT)
    list(stream.feed(data))
    list(stream.feed(b"\n\x01\n"))
    assert list(stream.feed(b'{"next":1}')) == [{"next": 1}]


def read(pieces: list[bytes]) -> list[Any]:
    stream = JsonStream(LIMIT)
    found = [value for piece in pieces for value in stream.feed(piece)]
    return [value.desc if isinstance(value, QmpError) else value for value in found]


def same(a: list[Any], b: list[Any]) -> bool:
    """Without recursion: values may be nested a thousand deep."""
    try:
        return a == b
    except RecursionError:
        return len(a) == len(b)


def check_command(value: dict[str, Any]) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except RecursionError:
        return
    assert all(math.isfinite(each) for each in value.values() if isinstance(each, float))
    command = SCHEMA.commands.get(str(value.get("execute")))
    arguments = value.get("arguments", {})
    if command is None or not isinstance(arguments, dict):
        return
    try:
        sure = SCHEMA.fits(command, arguments)
        try:
            SCHEMA.look(command, arguments)
        except QmpError:
            assert not sure
            raise
        for options in arguments.get("options", [arguments] if "driver" in arguments else []):
            parse(options)
    except QmpError as error:
        assert error.desc


if __name__ == "__main__":
    run(one_input, "qmp_json")
