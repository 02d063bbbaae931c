"""A QMP client, the same one for every daemon: the package `qemu.qmp`, which is an extra."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fdstash.errors import Error, OptionError

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

__all__ = ["Monitor", "RefusedCommandError", "need_client"]

_T = TypeVar("_T")
_RETRY = 0.02
#: Seconds until a daemon whose connection has ended must have ended.
_DYING = 1.0


class RefusedCommandError(Error):
    """What the daemon answered to a command that it did not carry out."""


def need_client() -> None:
    """Raises `OptionError` where the package is not there."""
    try:
        import qemu.qmp  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise OptionError(
            "QMP needs the package qemu.qmp: pip install 'fdstash[bench]'", option="against"
        ) from error


class Monitor:
    """A connection to a daemon's monitor. Owner: one thread.

    `alive` raises where the daemon has ended, or does within so many seconds; it is asked where the
    connection fails.
    """

    def __init__(self, path: str, alive: Callable[[float], None], timeout: float = 30) -> None:
        """Connect as soon as somebody listens at `path`, within `timeout` seconds."""
        from qemu.qmp import QMPClient  # noqa: PLC0415 - an extra

        self._alive = alive
        self._runner = asyncio.Runner()
        self._client: QMPClient = QMPClient("fdstash-bench")
        try:
            self.run(self._connect(path, time.monotonic() + timeout))
        except BaseException:
            self._runner.close()
            raise

    async def _connect(self, path: str, deadline: float) -> None:
        from qemu.qmp import ConnectError  # noqa: PLC0415 - an extra

        while True:
            self._alive(0)
            try:
                await self._client.connect(path)
            except ConnectError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_RETRY)
            else:
                return

    def run(self, task: Coroutine[Any, Any, _T]) -> _T:
        """Run it to its end."""
        return self._runner.run(task)

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run one command; what it returns. Raises as `timed` does."""
        return self.run(self._execute(command, arguments))

    async def timed(self, command: str, arguments: Mapping[str, object] | None = None) -> int:
        """Nanoseconds from the command to its answer.

        Raises `RefusedCommandError`, what `alive` raises, and `Error` where the connection ended.
        """
        begun = time.perf_counter_ns()
        await self._execute(command, arguments)
        return time.perf_counter_ns() - begun

    async def _execute(self, command: str, arguments: Mapping[str, object] | None) -> Any:
        from qemu.qmp import ExecuteError, QMPError  # noqa: PLC0415 - an extra

        given = None if arguments is None else dict(arguments)
        try:
            return await self._client.execute(command, given)
        except ExecuteError as error:
            raise RefusedCommandError(str(error)) from error
        except (QMPError, OSError, EOFError) as error:
            self._alive(_DYING)
            raise Error(f"the monitor's connection ended: {error}") from error

    def close(self) -> None:
        """Disconnect; never raises for a connection that has ended."""
        from qemu.qmp import QMPError  # noqa: PLC0415 - an extra

        try:
            self.run(self._client.disconnect())
        except (QMPError, OSError, EOFError):
            pass
        finally:
            self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
