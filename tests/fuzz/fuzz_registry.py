"""Fuzzes the recognition of formats, and the drivers for whatever is recognised.

python tests/fuzz/fuzz_registry.py [corpus folder] [-max_total_time=SECONDS]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from fdstash.errors import FormatError, ImageIOError, RefusedError
from fdstash.formats import registry
from tests.fuzz.harness import run
from tests.support.children import MemoryChild, MemoryOpener

ALLOWED = (FormatError, RefusedError, ImageIOError)


def one_input(data: bytes) -> None:
    head, tail = data[: registry.HEAD_BYTES], data[-registry.TAIL_BYTES :]
    found = registry.recognise(head, tail, len(data), "disk")
    assert found.name in registry.names()
    assert found.title
    assert 1 <= found.confidence <= 100
    assert registry.probe(head, tail, len(data), "disk") == found.name
    for name in {found.name, *registry.supported()}:
        try:
            driver = registry.driver(name, "disk")
            image = driver.open(MemoryChild(data), MemoryOpener(), writable=True, options={})
        except ALLOWED as error:
            assert str(error)
        else:
            assert sum(segment.length for segment in image.segments()) == image.size


if __name__ == "__main__":
    run(one_input, "registry")
