"""A queue of an image against a model of the image's bytes.

Requests in flight never overlap, but for reads: which one would be last is not said. What was
collected is in the model; what is in flight is in `pending`.
"""

from __future__ import annotations

import array
import errno
import random
import select
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from fdstash import Queue, clusters
from tests.support.kernel import descriptor_count
from tests.support.machine import CACHES, MODES, RequestMachine, lengths, offsets, seeds
from tests.support.pending import Arena, Pending, pages, refusal

__all__ = ["QueueMachine"]

_PAGE_BYTES = clusters.PAGE_BYTES
_UNTOUCHED = 0xA5

depths = st.sampled_from([1, 2, 5, 64])
#: Any memory; whole pages, which O_DIRECT takes as they are; a part of what was pinned.
memories = st.sampled_from(["bytes", "pages", "arena"])
modes = st.sampled_from([None, *MODES])
caches = st.sampled_from([None, *CACHES])


class QueueMachine(RequestMachine):
    """One queue at a time of one image; `engine` moves the bytes."""

    engine: str
    #: Whether requests are served by a driver, too: those are not begun yet when a mode changes.
    driven = False

    def __init__(self, root: Path) -> None:
        clusters.PAGE_BYTES = _PAGE_BYTES
        super().__init__(root)
        self.arena = Arena(1 << 17)
        self.pending: dict[int, Pending] = {}
        self.doubts: list[Pending] = []
        self.tags = 0
        self.queue = self.fresh_queue(8)

    @initialize(tight=st.booleans(), depth=depths)
    def start(self, *, tight: bool, depth: int) -> None:
        """`tight`: hardly a table stays in memory."""
        clusters.PAGE_BYTES = 0 if tight else _PAGE_BYTES
        self.queue.close()
        self.queue = self.fresh_queue(depth)

    def fresh_queue(self, depth: int) -> Queue:
        queue = self.image.queue(depth, engine=self.engine)
        queue.pin(self.arena.memory)
        return queue

    # -- bookkeeping

    def memory(self, kind: str, data: bytes) -> Any:
        """A buffer that holds `data`."""
        lent = any(self.arena.holds(each.memory) for each in self.pending.values())
        if kind == "arena" and not lent and len(data) <= len(self.arena.memory):
            return self.arena.lend(data)
        return bytearray(data) if kind == "bytes" else pages(data)

    def take_up(self, pending: Pending, add: Callable[[int], None]) -> None:
        """Add a request, after those that it overlaps."""
        both_read = pending.kind == "read"
        self.settle(pending.offset, pending.n, but_reads=both_read)
        if len(self.pending) == self.queue.depth:
            assert refusal(lambda: add(0)) == errno.EAGAIN
            self.collect()
        self.tags += 1
        add(self.tags)
        self.pending[self.tags] = pending

    def settle(self, offset: int, n: int, *, but_reads: bool = False) -> None:
        """Collect until nothing in flight overlaps this."""
        while any(
            each.overlaps(offset, n) and not (but_reads and each.kind == "read")
            for each in self.pending.values()
        ):
            self.collect()

    def settle_all(self) -> None:
        while self.pending:
            self.collect(len(self.pending))

    def submitted(self, mode: str | None = None) -> None:
        for each in self.pending.values():
            each.mode = each.mode or mode or self.mode

    def collect(self, least: int = 1, timeout: float | None = None) -> int:
        self.submitted()
        found = self.queue.wait(least, timeout)
        if timeout is None:
            assert len(found) >= min(least, len(self.pending))
        for tag, result in found:
            self.completed(self.pending.pop(tag), result)
        assert self.queue.in_flight == len(self.pending)
        return len(found)

    def wanted(self, each: Pending) -> int:
        """Its result, where the mode lets it be done."""
        if each.kind == "read":
            return max(0, min(each.n, len(self.model) - each.offset))
        if each.changes and each.offset + each.n > len(self.model):
            return -errno.ENOSPC
        return each.n if each.kind == "write" else 0

    def completed(self, each: Pending, result: int, *allowed: int) -> None:
        """The model does what was done; `allowed` are results beside the right ones."""
        refused = each.changes and each.mode == "r"
        right = {-errno.EBADF if refused else self.wanted(each), *allowed}
        if each.changes and each.refusable:
            right.add(-errno.EBADF)
        assert result in right, f"{each.kind} of {each.n} at {each.offset}: {result}, not {right}"
        if result < 0:
            if each.changes and each.mode == "r+" and result != -errno.ENOSPC:
                self.doubts.append(each)
        elif each.kind == "read":
            found = bytes(each.memory)
            self.check(found[:result], each.offset)
            assert not found[result:].strip(bytes([_UNTOUCHED]))
        elif each.changes:
            self.put(each.offset, each.data, int(each.kind == "trim"))
        if self.doubts and not self.image.closed:
            self.clear_doubts()

    def clear_doubts(self) -> None:
        """What was refused half way: each byte is the old one or the new one."""
        for each in self.doubts:
            found = self.image.pread(each.n, each.offset)
            for number, (byte, new) in enumerate(zip(found, each.data, strict=True), each.offset):
                maybe = {self.model[number], new}
                if self.unknown[number] or each.kind == "trim":
                    maybe.add(0)
                assert byte in maybe, f"byte {number} is {byte} after a {each.kind} was refused"
            self.put(each.offset, found)
        self.doubts.clear()

    # -- requests; those of RequestMachine, by the queue

    @rule(offset=offsets, n=lengths, seed=seeds, fua=st.booleans(), memory=memories)
    def write(self, offset: int, n: int, seed: int, *, fua: bool, memory: str = "bytes") -> None:
        offset %= len(self.model)
        data = random.Random(seed).randbytes(n)
        view = self.memory(memory, data)
        self.take_up(
            Pending("write", offset, n, view, data),
            lambda tag: self.queue.write(view, offset, tag, fua=fua),
        )

    @rule(offset=offsets, n=lengths, memory=memories)
    def read(self, offset: int, n: int, memory: str = "bytes") -> None:
        view = self.memory(memory, bytes([_UNTOUCHED]) * n)
        self.take_up(
            Pending("read", offset, n, view), lambda tag: self.queue.read(view, offset, tag)
        )

    @rule(offset=offsets, n=lengths, unmap=st.booleans(), fua=st.booleans())
    def zero(self, offset: int, n: int, *, unmap: bool, fua: bool) -> None:
        offset %= len(self.model)
        self.take_up(
            Pending("zero", offset, n, data=bytes(n)),
            lambda tag: self.queue.zero(n, offset, tag, unmap=unmap, fua=fua),
        )

    @rule(offset=offsets, n=lengths)
    def trim(self, offset: int, n: int) -> None:
        offset, n = self.place(offset, n)
        self.settle(offset, n)
        self.take_up(
            Pending("trim", offset, n, data=bytes(self.model[offset : offset + n])),
            lambda tag: self.queue.trim(n, offset, tag),
        )

    @rule()
    def flush(self) -> None:
        self.take_up(Pending("flush"), self.queue.flush)

    @rule(
        places=st.lists(st.tuples(st.booleans(), offsets, lengths, memories), min_size=2),
        seed=seeds,
    )
    def burst(self, places: Sequence[tuple[bool, int, int, str]], seed: int) -> None:
        for number, (writes, offset, n, memory) in enumerate(places):
            if writes:
                self.write(offset, n, seed + number, fua=False, memory=memory)
            else:
                self.read(offset, n, memory)

    # -- collecting

    @rule()
    def submit(self) -> None:
        self.submitted()
        assert self.queue.submit() == len(self.pending)

    @rule(least=st.integers(0, 9), timeout=st.sampled_from([None, 0.0, 0.001]))
    def wait(self, least: int, timeout: float | None) -> None:
        self.collect(least, timeout)

    @rule()
    def as_an_event_loop_does(self) -> None:
        poll = select.poll()
        poll.register(self.queue.fileno(), select.POLLIN)
        self.submit()
        while self.pending:
            assert poll.poll(20_000), f"no wake-up for {self.pending}"
            self.collect(0)

    # -- many in one call

    @rule(
        start=offsets,
        gap=st.sampled_from([0, 1, 512, 3584, 70_000]),
        n=st.sampled_from([1, 512, 600, 4096]),
        count=st.integers(0, 100),
        seed=seeds,
        writes=st.booleans(),
        memory=memories,
    )
    def many(
        self, start: int, gap: int, n: int, count: int, seed: int, *, writes: bool, memory: str
    ) -> None:
        start %= len(self.model)
        count = min(count, (len(self.model) - start) // (n + gap))
        places = [start + number * (n + gap) for number in range(count)]
        random.Random(seed).shuffle(places)
        for offset in places:
            self.settle(offset, n, but_reads=not writes)
        numbers = array.array("q", places)
        view = self.memory(memory, random.Random(seed).randbytes(max(1, count * n)))
        move = self.queue.write_many if writes else self.queue.read_many
        self.submitted()
        if count and len(self.pending) == self.queue.depth:
            assert refusal(lambda: move(numbers, n, view)) == errno.EAGAIN
            return
        if count and writes and self.mode == "r":
            assert refusal(lambda: move(numbers, n, view)) == errno.EBADF
            return
        assert move(numbers, n, view) == count * n
        found = bytes(view)
        for number, offset in enumerate(places):
            part = found[number * n : (number + 1) * n]
            if writes:
                self.put(offset, part)
            else:
                self.check(part, offset)

    # -- beside the queue

    @rule(offset=offsets, parts=st.lists(lengths, min_size=1, max_size=4), seed=seeds)
    def pwritev(self, offset: int, parts: Sequence[int], seed: int) -> None:
        self.settle(offset % len(self.model), sum(parts))
        super().pwritev(offset, parts, seed)

    @rule(offset=offsets, parts=st.lists(lengths, min_size=1, max_size=4))
    def preadv(self, offset: int, parts: Sequence[int]) -> None:
        self.settle(offset, sum(parts), but_reads=True)
        super().preadv(offset, parts)

    @precondition(lambda self: self.mode == "r+")
    @rule(size=st.integers(1, 150_000))
    def resize(self, size: int) -> None:
        self.settle_all()
        super().resize(size)

    def will_reopen(self, mode: str | None, *, elsewhere: bool = False) -> None:
        """What is in flight may be begun in either mode."""
        if mode is None or mode == self.mode:
            return
        for each in self.pending.values():
            if elsewhere and each.mode is None:
                each.mode, each.refusable = "r+", True
            elif each.mode == "r+" and (elsewhere or self.driven):
                each.refusable = True

    @rule(mode=modes, cache=caches, by_path=st.booleans())
    def reopen(self, mode: str | None, cache: str | None, *, by_path: bool) -> None:
        self.will_reopen(mode)
        self.image.reopen(mode=mode, cache=cache, path=self.path if by_path else None, timeout=60)
        self.mode, self.cache = mode or self.mode, cache or self.cache

    @rule(mode=modes, cache=caches)
    def reopen_elsewhere(self, mode: str | None, cache: str | None) -> None:
        """On another thread, while the owner collects."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                self.image.reopen(mode=mode, cache=cache, timeout=60)
            except BaseException as error:  # noqa: BLE001 - told by the owner
                failed.append(error)

        self.will_reopen(mode, elsewhere=True)
        self.submitted()
        thread = threading.Thread(target=run)
        thread.start()
        found = []
        while self.queue.in_flight:
            found += self.queue.wait()
        thread.join()
        assert not failed
        self.mode, self.cache = mode or self.mode, cache or self.cache
        for tag, result in found:
            self.completed(self.pending.pop(tag), result)
        assert not self.pending

    # -- ends

    @rule(depth=depths)
    def another_queue(self, depth: int) -> None:
        """What was submitted is done, and nothing else."""
        self.queue.close()
        left, self.pending = list(self.pending.values()), {}
        for each in left:
            if each.mode is None:
                continue
            if each.refusable:
                self.doubts.append(each)
                self.clear_doubts()
            elif each.changes and each.mode == "r":
                self.completed(each, -errno.EBADF)
            else:
                self.completed(each, self.wanted(each))
        self.queue = self.fresh_queue(depth)

    @rule(mode=st.sampled_from(MODES), cache=st.sampled_from(CACHES), depth=depths)
    def close_the_image_first(self, mode: str, cache: str, depth: int) -> None:
        self.image.close()
        while self.queue.in_flight:
            for tag, result in self.queue.wait():
                each = self.pending.pop(tag)
                if each.mode is None:
                    assert result == -errno.ESHUTDOWN
                else:
                    # What waits for the driver is not begun yet.
                    self.completed(each, result, *([-errno.ESHUTDOWN] if self.driven else []))
        assert not self.pending
        self.queue.close()
        assert descriptor_count() == self.before
        self.mode, self.cache = mode, cache
        self.image = self.open()
        self.clear_doubts()
        self.queue = self.fresh_queue(depth)

    # -- what holds after every step

    @invariant()
    def says_what_the_kernel_says(self) -> None:
        if not self.pending:  # else a file may grow meanwhile
            super().says_what_the_kernel_says()

    @invariant()
    def holds_a_slot_and_a_lock_for_each_file(self) -> None:
        held = 1 + 2 * (self.queue.engine == "io_uring")
        self.before += held
        try:
            super().holds_a_slot_and_a_lock_for_each_file()
        finally:
            self.before -= held

    @invariant()
    def serves_the_bytes_of_the_model(self) -> None:
        if not self.pending:
            super().serves_the_bytes_of_the_model()

    def look_at_the_files(self) -> None:
        """After the end."""

    def finish(self) -> None:
        self.settle_all()
        super().finish()
        self.queue.close()
        self.image.close()
        self.look_at_the_files()

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            clusters.PAGE_BYTES = _PAGE_BYTES
            self.queue.close()
            self.image.close()
            shutil.rmtree(self.root)
        assert descriptor_count() == self.before
