"""The verified load: it misses no failure and no wrong byte, and measures what it says."""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fdstash import ImageIOError
from fdstash.bench.cells import Cell, packed, sampled
from fdstash.bench.content import Baseline, Content, Generations
from fdstash.bench.histogram import Histogram, exact_percentile
from fdstash.bench.inflight import InFlight, RequestLog
from fdstash.bench.load import Load


class Memory:
    """An image of bytes, with a hook that sees every request."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.hook: Callable[[str, int, int], None] = lambda *_: None

    def pread(self, n: int, offset: int) -> bytes:
        self.hook("read", offset, n)
        return bytes(self.data[offset : offset + n])

    def preadv(self, buffers: Sequence[Any], offset: int) -> int:
        data = self.pread(len(buffers[0]), offset)
        buffers[0][: len(data)] = data
        return len(data)

    def pwrite(self, data: Any, offset: int) -> int:
        self.hook("write", offset, len(data))
        self.data[offset : offset + len(data)] = data[:]
        return len(data)

    def flush(self) -> None:
        self.hook("flush", 0, 0)


SIZE = 256 << 10


def filled() -> tuple[Memory, Generations]:
    memory, content = Memory(SIZE), Generations(packed(SIZE, 4096))
    for number, cell in enumerate(content.cells):
        memory.data[cell.offset : cell.offset + cell.length] = content.image_of(number, 0)
    return memory, content


def loaded(memory: Memory, content: Content, *, seconds: float = 0.1, **options: Any) -> Load:
    load = Load(
        memory, content, **{"threads": 2, "block_bytes": 4096, "seed": 1, "writes": True} | options
    )
    with load:
        time.sleep(seconds)
    return load


def test_a_sound_image_passes_and_ends_as_the_content_says() -> None:
    memory, content = filled()
    kinds: dict[str, int] = {}

    def count(kind: str, offset: int, _n: int) -> None:
        kinds[kind] = kinds.get(kind, 0) + 1

    memory.hook = count
    load = loaded(memory, content)
    assert (load.failed, load.wrong, load.messages) == (0, 0, [])
    assert kinds["read"] > 100
    assert kinds["write"] > 50
    assert sum(len(log.histogram) for log in load.logs) == sum(kinds.values())
    for number, cell in enumerate(content.cells):
        assert bytes(memory.data[cell.offset :][: cell.length]) == content.expected(number)


@pytest.mark.parametrize("block_bytes", [512, 4096, 65536])
@pytest.mark.parametrize("size", [1, 1000, 4096, 1 << 20, (3 << 20) + 77])
def test_packed_cells_cover_everything_once(size: int, block_bytes: int) -> None:
    end = 0
    for cell in packed(size, block_bytes):
        assert cell.offset == end
        assert cell.length > 0
        end += cell.length
    assert end == size


def test_packed_cells_cross_every_mebibyte() -> None:
    cells = packed(4 << 20, 4096)
    for boundary in range(1 << 20, 4 << 20, 1 << 20):
        assert any(c.offset < boundary < c.offset + c.length for c in cells)
    assert any(cell.offset % 512 and cell.length % 512 for cell in cells)
    assert sum(cell.length == 4096 and cell.offset % 4096 == 0 for cell in cells) > 900


@pytest.mark.parametrize("size", [1, 511, 4096, 100_000, 1 << 20, (64 << 20) + 5])
@pytest.mark.parametrize("seed", range(3))
def test_sampled_cells_lie_apart_within_the_image(size: int, seed: int) -> None:
    cells = sampled(size, 4096, 500, seed)
    assert 0 < len(cells) <= 501
    end = 0
    for cell in cells:
        assert cell.offset >= end
        assert cell.length > 0
        end = cell.offset + cell.length
    assert end == size
    assert cells == sampled(size, 4096, 500, seed)


def test_one_wrong_byte_is_found() -> None:
    memory, content = filled()
    victim = content.cells[17]

    def spoil(kind: str, offset: int, n: int) -> None:
        if kind == "read" and offset == victim.offset and memory.data[offset + n - 1] != 255:
            memory.data[offset + n - 1] = 255

    memory.hook = spoil
    load = loaded(memory, content)
    assert load.wrong > 0
    assert f"{victim.length} at {victim.offset}" in load.messages[0]


def test_a_write_that_is_lost_is_found() -> None:
    memory, content = filled()
    kept = memory.pwrite
    memory.pwrite = (  # type: ignore[method-assign]
        lambda data, offset: kept(data, offset) if offset else len(data)
    )
    assert loaded(memory, content).wrong > 0


def test_failed_requests_are_counted_and_outlived() -> None:
    memory, content = filled()
    failing = threading.Event()

    def fail(kind: str, offset: int, _n: int) -> None:
        if kind == "write" and not failing.is_set() and offset == content.cells[3].offset:
            failing.set()
            raise ImageIOError(5, "broken", "disk")

    memory.hook = fail
    load = loaded(memory, content)
    # The write may or may not have happened; neither is a wrong byte.
    assert (load.failed, load.wrong) == (1, 0)
    assert "broken" in load.messages[0]


def test_no_write_is_under_way_while_writes_are_held() -> None:
    memory, content = filled()
    writing: list[int] = []

    def slow(kind: str, offset: int, _n: int) -> None:
        if kind == "write":
            writing.append(offset)
            time.sleep(0.0005)

    memory.hook = slow
    load = Load(memory, content, threads=3, block_bytes=4096, seed=1, writes=True)
    with load:
        for _ in range(5):
            time.sleep(0.01)
            load.hold_writes()
            seen = len(writing)
            before = bytes(memory.data)
            time.sleep(0.01)
            assert (len(writing), bytes(memory.data)) == (seen, before)
            load.resume_writes()
    assert writing


def test_writes_that_are_held_stay_so_when_the_load_ends() -> None:
    memory, content = filled()
    for _ in range(5):
        with Load(memory, content, threads=3, block_bytes=4096, seed=1, writes=True) as load:
            time.sleep(0.01)
            load.hold_writes()
            before = bytes(memory.data)
        assert bytes(memory.data) == before


def test_a_bug_in_the_load_is_not_swallowed() -> None:
    memory, content = filled()

    def bug(kind: str, _offset: int, _n: int) -> None:
        raise KeyError(kind)

    memory.hook = bug
    with pytest.raises(KeyError):
        loaded(memory, content)


def test_a_foreign_image_gets_only_the_bytes_that_it_has() -> None:
    memory = Memory(SIZE)
    memory.data[:] = random.Random(1).randbytes(SIZE)
    before = bytes(memory.data)
    cells = sampled(SIZE, 4096, 40, 1)
    data = [before[c.offset : c.offset + c.length] for c in cells]
    writable = [number % 3 > 0 for number in range(len(cells))]
    written: set[int] = set()

    def look(kind: str, offset: int, _n: int) -> None:
        if kind == "write":
            written.add(offset)
        assert bytes(memory.data) == before

    memory.hook = look
    load = loaded(memory, Baseline(cells, data, writable))
    assert (load.failed, load.wrong) == (0, 0)
    assert written == {cell.offset for cell, may in zip(cells, writable, strict=True) if may}


def test_a_foreign_block_that_changed_is_never_written_over() -> None:
    memory = Memory(8192)
    cells = [Cell(0, 4096), Cell(4096, 4096)]
    content = Baseline(cells, [bytes(4096)] * 2, [True, True])
    memory.data[4096] = 1  # somebody else's change
    load = loaded(memory, content)
    assert load.wrong > 0
    assert memory.data[4096] == 1
    assert memory.data.count(1) == 1


def test_percentiles_are_close_and_never_too_low() -> None:
    rng = random.Random(3)
    values = [int(10 ** rng.uniform(0, 10)) for _ in range(5000)]
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    for percent in (0.1, 50, 90, 99, 99.9, 100):
        exact = exact_percentile(values, percent)
        assert exact <= histogram.percentile(percent) <= exact * 1.032 + 1
    assert (len(histogram), histogram.largest) == (5000, max(values))
    assert histogram.percentile(100) == max(values)


def test_histograms_add_up() -> None:
    parts = [Histogram(), Histogram()]
    whole = Histogram()
    for value in range(0, 100_000, 7):
        parts[value % 2].record(value)
        whole.record(value)
    parts[0].add(parts[1])
    for percent in (10, 50, 99.9):
        assert parts[0].percentile(percent) == whole.percentile(percent)
    assert len(parts[0]) == len(whole)


def test_nothing_recorded_is_zero() -> None:
    assert Histogram().percentile(99) == 0
    assert exact_percentile([], 50) == 0
    assert exact_percentile([5], 99.9) == exact_percentile([5], 0) == 5


def test_requests_in_flight_are_those_that_span_the_instant() -> None:
    log = RequestLog()
    for start in range(0, 100_000, 10):  # chunks are handed over in between
        log.add(start, start + 5)
    log.close()
    found = InFlight([log])
    for instant in (3, 7, 50_005, 50_006, 99_994):
        found.mark(instant, placebo=False)
    found.mark(99_999, placebo=True)  # between two
    found.collect()
    assert found.count(placebo=False) == 3
    assert found.percentile(99.9, placebo=False) == 5
    assert found.count(placebo=True) == 0


def test_an_instant_waits_for_the_request_that_spans_it() -> None:
    log = RequestLog()
    found = InFlight([log])
    log.chunks.append((array("q", [0]), array("q", [10])))
    found.mark(15, placebo=False)
    found.collect()
    assert found.count(placebo=False) == 0
    log.chunks.append((array("q", [12]), array("q", [900])))
    found.collect()
    assert found.percentile(99.9, placebo=False) == 888
