"""`Image.aio`: requests as coroutines, with io_uring and without."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Awaitable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from fdstash import ClosedError, Image, ImageIOError
from fdstash.aio import AsyncImage
from fdstash.queue import Queue
from tests.support.disks import noise

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

T = TypeVar("T")

#: More than a loop has in flight.
MANY = 300


@pytest.fixture(params=["io_uring", "threads"], autouse=True)
def what_a_loop_uses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Threads as if io_uring were refused; tests/faults/test_queue_faults.py has it refused."""
    name: str = request.param

    def queue(self: AsyncImage) -> Queue:
        return Queue(self._state, self._mark, 64, name)

    monkeypatch.setattr(AsyncImage, "_queue", queue)
    return name


async def soon(what: Awaitable[T]) -> T:
    """The result; a test that hangs tells where."""
    return await asyncio.wait_for(what, 20)


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(soon(main))


def lanes(image: Image) -> list[Queue]:
    return [lane.queue for lane in image.aio._lanes.values()]


def test_what_was_written_is_read(image: Image, what_a_loop_uses: str) -> None:
    async def main() -> None:
        aio = image.aio
        assert await aio.pwrite(noise(5000), 700) == 5000
        assert await aio.pwritev([noise(100, 1), b"", noise(9000, 2)], 65_000, fua=True) == 9100
        await aio.flush()
        assert await aio.pread(5000, 700) == noise(5000)
        parts = [bytearray(100), bytearray(0), bytearray(9000)]
        assert await aio.preadv(parts, 65_000) == 9100
        assert parts == [noise(100, 1), b"", noise(9000, 2)]
        assert [queue.engine for queue in lanes(image)] == [what_a_loop_uses]

    run(main())
    assert image.pread(5000, 700) == noise(5000)


def test_zero_and_trim(image: Image) -> None:
    async def main() -> None:
        await image.aio.pwrite(noise(100_000), 0)
        assert await image.aio.zero(8192, 4096) is None
        assert await image.aio.zero(1000, 20_000, unmap=True, fua=True) is None
        assert await image.aio.trim(4096, 65_536) is None
        assert await image.aio.flush() is None
        assert await image.aio.pread(8192, 4096) == bytes(8192)
        assert await image.aio.pread(1000, 20_000) == bytes(1000)
        assert await image.aio.pread(4096, 0) == noise(100_000)[:4096]

    run(main())


def test_reads_are_short_at_the_end_alone(image: Image) -> None:
    async def main() -> None:
        end = image.size
        assert len(await image.aio.pread(1000, end - 10)) == 10
        assert await image.aio.pread(1000, end) == b""
        assert await image.aio.pread(0, 0) == b""
        parts = [bytearray(6), bytearray(6), bytearray(6)]
        assert await image.aio.preadv(parts, end - 10) == 10

    run(main())


def test_errors_are_those_of_the_image(image: Image) -> None:
    async def failed_with(request: Awaitable[object]) -> int | None:
        with pytest.raises(ImageIOError) as caught:
            await request
        return caught.value.errno

    async def main() -> None:
        aio = image.aio
        assert await failed_with(aio.pwrite(b"x" * 11, image.size - 10)) == errno.ENOSPC
        assert await failed_with(aio.zero(11, image.size - 10)) == errno.ENOSPC
        assert await failed_with(aio.pread(1, -1)) == errno.EINVAL
        assert await failed_with(aio.pread(-1, 0)) == errno.EINVAL
        await asyncio.to_thread(image.reopen, mode="r")
        assert await failed_with(aio.pwrite(b"x", 0)) == errno.EBADF
        assert await failed_with(aio.trim(4096, 0)) == errno.EBADF
        # Those that were refused have left their room.
        await asyncio.gather(*[aio.pread(1, 0) for _ in range(MANY)])

    run(main())


def test_more_than_there_is_room_for_at_once(image: Image) -> None:
    async def main() -> None:
        n = image.size // MANY
        done = await asyncio.gather(
            *[image.aio.pwrite(noise(n, number), number * n) for number in range(MANY)]
        )
        assert done == [n] * MANY
        found = await asyncio.gather(*[image.aio.pread(n, number * n) for number in range(MANY)])
        assert found == [noise(n, number) for number in range(MANY)]

    run(main())


def test_what_fails_fails_alone(image: Image) -> None:
    async def main() -> None:
        found = await asyncio.gather(
            *[
                image.aio.pwrite(b"x" * 512, image.size - 100 if number % 3 else number * 512)
                for number in range(90)
            ],
            return_exceptions=True,
        )
        for number, result in enumerate(found):
            if number % 3:
                assert isinstance(result, ImageIOError)
                assert result.errno == errno.ENOSPC
            else:
                assert result == 512

    run(main())


def test_tasks_that_are_cancelled_leave_their_room(image: Image) -> None:
    """While in flight and while waiting for room; what was in flight is done."""

    async def main() -> None:
        for turn in range(20):
            tasks = [
                asyncio.create_task(image.aio.pwrite(noise(300, number), number * 300))
                for number in range(MANY)
            ]
            for _ in range(turn % 4):
                await asyncio.sleep(0)
            for number, task in enumerate(tasks):
                if number % 5:
                    task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            for number, result in enumerate(found):
                assert result == 300 or (number % 5 and isinstance(result, asyncio.CancelledError))
        await asyncio.gather(*[image.aio.pread(1, 0) for _ in range(MANY)])
        for number in range(0, MANY, 5):
            assert await image.aio.pread(300, number * 300) == noise(300, number)

    run(main())


def test_the_buffer_of_a_cancelled_read_stays_until_it_is_done(image: Image) -> None:
    async def main() -> None:
        buffer = bytearray(image.size)
        task = asyncio.create_task(image.aio.preadv([buffer], 0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        (queue,) = lanes(image)
        while queue.in_flight:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
        buffer.clear()  # pinned no more

    run(main())


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_closing_ends_every_request(image: Image, where: str) -> None:
    """Those in flight, those not submitted, and those that wait for room."""
    n = image.size // MANY
    image.pwrite(noise(n), 0)

    async def main() -> None:
        tasks = [asyncio.create_task(image.aio.pread(n, 0)) for _ in range(MANY)]
        await asyncio.sleep(0)
        if where == "loop":
            image.close()
        else:
            await asyncio.to_thread(image.close)
        for result in await soon(asyncio.gather(*tasks, return_exceptions=True)):
            assert result == noise(n) or isinstance(result, ClosedError), result
        with pytest.raises(ClosedError):
            await image.aio.pread(1, 0)

    run(main())


def test_loops_of_several_threads_have_a_queue_each(image: Image) -> None:
    failed = []
    n = image.size // 4 // 40
    together = threading.Barrier(4)

    def loop(part: int) -> None:
        async def main() -> None:
            together.wait(30)
            start = part * image.size // 4
            for turn in range(5):
                seeds = [part * 1000 + turn * 40 + number for number in range(40)]
                await asyncio.gather(
                    *[
                        image.aio.pwrite(noise(n, seed), start + number * n)
                        for number, seed in enumerate(seeds)
                    ]
                )
                found = await asyncio.gather(
                    *[image.aio.pread(n, start + number * n) for number in range(40)]
                )
                assert found == [noise(n, seed) for seed in seeds]

        try:
            run(main())
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    threads = [threading.Thread(target=loop, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_loops_that_have_ended_are_let_go(image: Image) -> None:
    async def main() -> bytes:
        return await image.aio.pread(10, 0)

    for _ in range(5):
        run(main())
        assert len(lanes(image)) == 1


def test_an_image_is_closed_after_its_loop(image: Image) -> None:
    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(image.aio.pwrite(b"1234", 0)) == 4
        image.close()
    finally:
        loop.close()


def test_the_loop_turns_while_a_reopen_holds_a_write(image: Image) -> None:
    image.pwrite(bytes(8192), 0)
    held, go = threading.Event(), threading.Event()

    def prepare() -> None:
        held.set()
        assert go.wait(30)

    async def main() -> None:
        reopening = asyncio.create_task(asyncio.to_thread(image.reopen, prepare=prepare))
        await asyncio.to_thread(held.wait, 30)
        writing = asyncio.create_task(image.aio.pwrite(noise(100), 0))
        for _ in range(50):
            assert await image.aio.pread(100, 4096) == bytes(100)
        assert not writing.done()
        go.set()
        assert await writing == 100
        await reopening

    run(main())
    assert image.pread(100, 0) == noise(100)


def test_reopens_beside_requests(image: Image) -> None:
    """No request fails, whatever becomes of the image meanwhile."""

    def changes() -> Iterator[dict[str, str]]:
        for cache in ("none", "writeback", "writethrough", "directsync", "writeback"):
            yield {"cache": cache}

    async def load(part: int, until: asyncio.Event) -> None:
        turn = 0
        while not until.is_set():
            turn += 1
            data = noise(777, part * 10_000 + turn)
            assert await image.aio.pwrite(data, part * 1000) == 777
            assert await image.aio.pread(777, part * 1000) == data

    async def main() -> None:
        until = asyncio.Event()
        tasks = [asyncio.create_task(load(part, until)) for part in range(20)]
        for change in changes():
            await asyncio.to_thread(image.reopen, **change, timeout=30)
            await asyncio.sleep(0.01)
        until.set()
        await asyncio.gather(*tasks)

    run(main())
