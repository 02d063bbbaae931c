"""The calls that are made once a request: arguments, buffers, lifetimes, threads."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import inspect
import itertools
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import AlignedBuffer, ClosedError, Image, _calls
from fdstash.datapath import Requests
from tests.support.disks import make_raw, noise
from tests.support.need import need_program
from tests.support.refusals import failed_with
from tests.support.tier import count

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

CALLS = ("pread", "preadv", "pwrite", "pwritev")


class Index:
    """An integer by `__index__` alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def call(image: Image, name: str, buffer: Any, offset: Any) -> object:
    """Any of the four, of `buffer` or, for `pread`, of its length."""
    if name == "pread":
        return image.pread(len(buffer), offset)
    return getattr(image, name)([buffer] if name.endswith("v") else buffer, offset)


def test_arguments_may_be_named(image: Image) -> None:
    expected = image.pread(64, 100)
    assert image.pread(offset=100, n=64) == image.pread(64, offset=100) == expected
    buffer = bytearray(64)
    assert image.preadv(offset=100, buffers=[buffer]) == 64
    assert buffer == expected
    assert image.pwrite(offset=300, data=buffer, fua=True) == 64
    assert image.pwritev(buffers=(buffer,), offset=364, fua=1) == 64  # type: ignore[arg-type]
    assert image.pread(128, 300) == expected * 2


def test_arguments_that_do_not_fit_are_a_type_error(image: Image) -> None:
    wrong: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
        ("pread", (1,), {}, "'offset'"),
        ("pread", (), {"offset": 1}, "'n'"),
        ("pread", (1, 2, 3), {}, "positional"),
        ("pread", (1, 2), {"n": 1}, "multiple"),
        ("pread", (1, 2), {"fua": True}, "unexpected"),
        ("preadv", (), {}, "'buffers'"),
        ("pwrite", (b"", 0, True), {}, "positional"),
        ("pwrite", (b"", 0), {"flush": True}, "unexpected"),
        ("pwritev", ([],), {"fua": True}, "'offset'"),
    ]
    for name, args, named, said in wrong:
        with pytest.raises(TypeError, match=said):
            getattr(image, name)(*args, **named)


def test_what_is_no_integer_is_a_type_error(image: Image) -> None:
    for wrong in (1.0, "1", None, b"1"):
        for name in CALLS:
            with pytest.raises(TypeError):
                call(image, name, bytearray(1), wrong)
        with pytest.raises(TypeError):
            image.pread(wrong, 0)  # type: ignore[arg-type]


def test_every_kind_of_integer_serves(image: Image) -> None:
    expected = image.pread(3, 1)
    assert image.pread(Index(3), Index(1)) == expected  # type: ignore[arg-type]
    assert image.pread(True, False) == image.pread(1, 0)
    assert image.pwrite(b"x", True) == 1
    assert image.pread(1, 1) == b"x"
    assert failed_with(lambda: image.pread(Index(-3), 0)) == errno.EINVAL  # type: ignore[arg-type]


def test_an_offset_that_cannot_be_is_refused_and_named(image: Image) -> None:
    buffer = bytearray(5)
    offsets = [-1, -(1 << 63), -(1 << 64), 1 << 63, 1 << 64, 1 << 200]
    for name, offset in itertools.product(CALLS, offsets):
        said = f"no such range: . bytes at {offset}"
        with pytest.raises(fdstash.ImageIOError, match=said) as told:
            call(image, name, buffer, offset)
        assert told.value.errno == errno.EINVAL
        buffer.append(0)  # not pinned
        buffer.pop()


def test_a_length_is_cut_before_memory_is_asked_for(image: Image) -> None:
    assert image.pread((1 << 62), 0) == image.pread(image.size, 0)
    assert image.pread((1 << 63) - 1, 0) == image.pread(image.size, 0)
    assert failed_with(lambda: image.pread(1 << 63, 0)) == errno.EINVAL
    assert image.pread((1 << 62), image.size) == b""


def test_nothing_may_be_moved(image: Image) -> None:
    assert image.pread(0, 0) == image.pread(0, image.size) == b""
    assert image.preadv([], 5) == image.preadv([bytearray()], 5) == 0
    assert image.pwrite(b"", 5) == image.pwritev([], 5) == image.pwritev([b"", b""], 5) == 0


def test_any_sequence_of_any_length_serves(image: Image) -> None:
    class Pieces(Sequence[Any]):
        def __init__(self, items: Sequence[Any]) -> None:
            self.items = items

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, at: Any) -> Any:
            return self.items[at]

    for number, kind in itertools.product([1, 7, 8, 9, 100], [list, tuple, Pieces]):
        pieces = [noise(11, seed) for seed in range(number)]
        image.zero(11 * number, 77)
        assert image.pwritev(kind(pieces), 77) == 11 * number
        buffers = [bytearray(11) for _ in pieces]
        assert image.preadv(kind(buffers), 77) == 11 * number
        assert buffers == pieces
    with pytest.raises(TypeError):
        image.preadv(iter([bytearray(1)]), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [1, 20])
def test_what_was_pinned_is_let_go_of_where_a_later_buffer_does_not_serve(
    image: Image, number: int
) -> None:
    buffers = [bytearray(10) for _ in range(number)]
    before = sys.getrefcount(buffers[-1])
    for wrong in [None, 5, "text", memoryview(bytearray(8))[::2]] * 10:
        for method in (image.preadv, image.pwritev):
            with pytest.raises((TypeError, BufferError)):
                method([*buffers, wrong], 0)
    with pytest.raises(BufferError):
        image.preadv([*buffers, b"constant"], 0)
    for buffer in buffers:
        buffer.extend(b"free")
    assert sys.getrefcount(buffers[-1]) < before + 10


def test_a_sequence_that_changes_its_mind_is_an_error(image: Image) -> None:
    class Failing(Sequence[Any]):
        def __len__(self) -> int:
            raise ZeroDivisionError

        def __getitem__(self, at: Any) -> Any:
            raise ZeroDivisionError

    buffer = bytearray(4)

    class Late(Failing):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, at: Any) -> Any:
            return buffer if at == 0 else 1 / 0

    for name in ("preadv", "pwritev"):
        for buffers in (Failing(), Late()):
            with pytest.raises(ZeroDivisionError):
                getattr(image, name)(buffers, 0)
    buffer.append(1)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails_lets_go_of_its_buffers(image: Image, name: str) -> None:
    buffer = bytearray(100)
    if name.startswith("pwrite"):
        assert failed_with(lambda: call(image, name, buffer, image.size)) == errno.ENOSPC
        buffer.append(1)
    image.close()
    before = sys.getrefcount(buffer)
    for _ in range(20):
        with pytest.raises(ClosedError):
            call(image, name, buffer, 0)
    buffer.append(1)
    assert sys.getrefcount(buffer) < before + 10


def test_no_call_leaks_a_reference(image: Image) -> None:
    buffer = bytearray(4096)
    before = [sys.getrefcount(image), sys.getrefcount(buffer)]
    for _ in range(100):
        for name in CALLS:
            call(image, name, buffer, 4096)
    assert [sys.getrefcount(image), sys.getrefcount(buffer)] == before


def test_an_aligned_buffer_is_pinned_during_a_call(image: Image) -> None:
    core = image._state.core
    with AlignedBuffer(4096) as buffer:
        core.hold(int(Requests.READS), None)
        try:
            reader = threading.Thread(target=image.preadv, args=([buffer], 0))
            reader.start()
            while True:  # until the thread is in the core
                time.sleep(0.001)
                try:
                    buffer.resize(8192)
                except BufferError:
                    break
                buffer.resize(4096)
        finally:
            core.release()
            reader.join()
        assert buffer[:] == image.pread(4096, 0)


@pytest.mark.threads
@pytest.mark.parametrize("name", CALLS)
def test_other_threads_run_while_a_call_waits(image: Image, name: str) -> None:
    image.pwrite(b"marked", 0)
    core = image._state.core
    buffer = bytearray(100)
    waiting = threading.Thread(target=call, args=(image, name, buffer, 0))
    core.hold(int(Requests.READS | Requests.WRITES | Requests.UNALIGNED_WRITES), None)
    try:
        waiting.start()  # with the interpreter's lock held, this would be all
        time.sleep(0.01)
        assert waiting.is_alive()
        if name != "pread":
            with pytest.raises(BufferError):
                buffer.append(1)
    finally:
        core.release()
    waiting.join()


@pytest.mark.threads
@pytest.mark.parametrize("name", CALLS)
def test_an_image_may_be_closed_and_dropped_under_its_calls(tmp_path: Path, name: str) -> None:
    path = make_raw(tmp_path, 1 << 16)
    for _ in range(max(3, count(100))):
        image = fdstash.open(path, "r+", format="raw")
        ready = threading.Barrier(4)

        def hammer(image: Image, ready: threading.Barrier) -> None:
            bound = getattr(image, name)  # all that is left of the image in the end
            del image
            buffer = bytearray(4096)
            args = (4096 if name == "pread" else [buffer] if name.endswith("v") else buffer, 0)
            ready.wait()
            with contextlib.suppress(ClosedError):
                while True:
                    bound(*args)

        threads = [threading.Thread(target=hammer, args=(image, ready)) for _ in range(3)]
        for thread in threads:
            thread.start()
        ready.wait()
        image.close()
        del image
        for thread in threads:
            thread.join()


def test_a_bound_method_keeps_the_image_alive(tmp_path: Path) -> None:
    image = fdstash.open(make_raw(tmp_path, 1 << 16), format="raw")
    expected = image.pread(10, 0)
    known = weakref.ref(image)
    read = image.pread
    del image
    gc.collect()
    assert read(10, 0) == expected
    opened = known()
    assert opened is not None
    opened.close()
    del read, opened
    gc.collect()
    assert known() is None


def test_a_subclass_may_have_calls_of_its_own(tmp_path: Path) -> None:
    class Counting(Image):
        reads = 0

        def pread(self, n: int, offset: int) -> bytes:
            self.reads += 1
            return super().pread(n, offset)

    opened = fdstash.open(make_raw(tmp_path, 1 << 16), format="raw")
    image = Counting(opened._state)
    assert image.pread(10, 3) == opened.pread(10, 3)
    assert image.reads == 1
    assert image.as_file().read(5) == opened.pread(5, 0)
    opened.close()
    with pytest.raises(ClosedError):
        image.pread(10, 3)


def test_an_image_that_was_not_opened_is_closed() -> None:
    image = Image.__new__(Image)
    image._name = "none"
    for name in CALLS:
        with pytest.raises(ClosedError):
            call(image, name, bytearray(1), 0)


def test_an_image_is_initialised_once(image: Image) -> None:
    with pytest.raises(RuntimeError, match="once"):
        image.__init__(image._state)  # type: ignore[misc]
    assert len(image.pread(10, 0)) == 10


def test_an_image_is_neither_copied_nor_pickled(image: Image) -> None:
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            make(image)


def test_the_calls_tell_how_they_are_called() -> None:
    assert str(inspect.signature(Image.pread)) == "(self, /, n, offset)"
    assert str(inspect.signature(Image.preadv)) == "(self, /, buffers, offset)"
    assert str(inspect.signature(Image.pwrite)) == "(self, /, data, offset, *, fua=False)"
    assert str(inspect.signature(Image.pwritev)) == "(self, /, buffers, offset, *, fua=False)"
    for name in CALLS:
        assert "bytes" in inspect.getdoc(getattr(Image, name)) or "pwrite" in name  # type: ignore[operator]


def test_a_backing_image_has_no_writes() -> None:
    assert issubclass(fdstash.Backing, _calls.Reads)
    assert not hasattr(fdstash.Backing, "pwrite")
    assert not hasattr(fdstash.Backing, "pwritev")


def test_the_calls_have_no_core_of_their_own() -> None:
    nm = need_program("nm", "binutils")
    shown = subprocess.run([nm, _calls.__file__], capture_output=True, text=True, check=True)
    assert "PyInit__calls" in shown.stdout
    assert "fdstash_" not in shown.stdout


@pytest.mark.parametrize("call_back", [lambda image: image.pread(5, 0), lambda image: image.size])
def test_the_first_write_is_announced_once(
    image: Image, monkeypatch: pytest.MonkeyPatch, call_back: Callable[[Image], object]
) -> None:
    told: list[tuple[int, int]] = []
    mark = image._mark

    def announced(n: int, offset: int) -> None:
        told.append((n, offset))
        call_back(image)
        mark(n, offset)

    monkeypatch.setattr(image, "_mark", announced)
    assert image.pwrite(b"", 9) == 0
    image.pwritev([b"12", b"345"], 7)
    image.pwrite(b"6", 8)
    assert told == [(0, 9), (5, 7)]
