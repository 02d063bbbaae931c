"""qemu-img and qemu-io, and a qemu-io that stays and holds an image open."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Self

from tests.support.need import need_program, plain_environment

__all__ = ["QemuIo", "create_with_qemu", "image_opts", "qemu_img", "qemu_io", "same_for_qemu"]

_Path = str | os.PathLike[str]
_IN_USE = "Is another process using the image"


class Ran:
    """A finished program."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status = done.returncode
        self.output = done.stdout
        self.errors = done.stderr

    @property
    def refused_by_a_lock(self) -> bool:
        return self.status != 0 and _IN_USE in self.errors

    def __repr__(self) -> str:
        return f"<status {self.status}\n{self.output}\n{self.errors}>"


def _run(command: Sequence[str], timeout: float = 60) -> Ran:
    done = subprocess.run(
        command,
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    return Ran(done)


def qemu_img(*arguments: _Path | int) -> Ran:
    return _run([need_program("qemu-img", "qemu-utils"), *map(str, map(_text, arguments))])


def _text(argument: _Path | int) -> str:
    return str(argument) if isinstance(argument, int) else os.fspath(argument)


def qemu_io(path: _Path, *commands: str, format: str = "raw", options: Sequence[str] = ()) -> Ran:
    """Opens the image, runs the commands, ends. Reads zeros-or-pattern mismatches as failures."""
    arguments = [need_program("qemu-io", "qemu-utils"), "-f", format, *options]
    for command in commands:
        arguments += ["-c", command]
    ran = _run([*arguments, os.fspath(path)])
    if "Pattern verification failed" in ran.output:
        ran.status = 1
    return ran


def image_opts(path: _Path, **options: object) -> str:
    """A raw image of a host file, with options of the raw driver, for --image-opts."""
    words = ["driver=raw", "file.driver=file", f"file.filename={os.fspath(path)}"]
    return ",".join([*words, *(f"{key}={value}" for key, value in options.items())])


def create_with_qemu(path: _Path, format: str, size: int, **options: object) -> None:
    words: list[_Path | int] = ["create", "-q", "-f", format]
    for key, value in options.items():
        words += ["-o", f"{key}={value}"]
    ran = qemu_img(*words, path, size)
    assert ran.status == 0, ran


def same_for_qemu(a: _Path, a_format: str, b: _Path, b_format: str) -> bool:
    """Whether `qemu-img compare -s` finds the two images identical, their sizes included."""
    ran = qemu_img("compare", "-s", "-f", a_format, "-F", b_format, a, b)
    assert ran.status in (0, 1), ran
    return ran.status == 0


class QemuIo:
    """A qemu-io process that has an image open until the block ends.

    With `readonly` it reads and lets others read. Each write is durable unless `writeback`.
    """

    _PROMPT = "qemu-io> "

    def __init__(
        self,
        path: _Path,
        format: str = "raw",
        *,
        readonly: bool = False,
        writeback: bool = False,
    ) -> None:
        command = [need_program("qemu-io", "qemu-utils"), "-f", format]
        command += ["-r"] if readonly else []
        command += ["-t", "writeback"] if writeback else []
        self._process = subprocess.Popen(
            [*command, os.fspath(path)],
            env=plain_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._until_prompt()

    @staticmethod
    def _pipe(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream

    def _until_prompt(self) -> str:
        said = ""
        while not said.endswith(self._PROMPT):
            part = self._pipe(self._process.stdout).read(1)
            if not part:
                raise AssertionError(f"qemu-io has ended: {said}")
            said += part
        return said.removesuffix(self._PROMPT)

    def do(self, command: str) -> str:
        """Run one command; what it said."""
        stdin = self._pipe(self._process.stdin)
        stdin.write(command + "\n")
        stdin.flush()
        return self._until_prompt()

    def close(self) -> None:
        if self._process.returncode is not None:
            return
        self._pipe(self._process.stdin).close()
        self._process.wait(30)
        self._pipe(self._process.stdout).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
