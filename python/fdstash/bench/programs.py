"""Other people's programs that a measurement needs."""

from __future__ import annotations

import shutil
import subprocess

from fdstash.errors import OptionError

__all__ = ["end", "last_words", "need_program"]

#: By the program: the package of Debian that has it.
_PACKAGES = {"fio": "fio", "qemu-storage-daemon": "qemu-system-common"}
_TOLD = 300


def need_program(name: str) -> str:
    """Its path. Raises `OptionError` where it is not on PATH."""
    found = shutil.which(name)
    if found is None:
        raise OptionError(
            f"{name} is not on PATH (Debian: apt-get install {_PACKAGES[name]})", option="against"
        )
    return found


def last_words(path: str) -> str:
    """The end of what a program wrote to a file, in one line; empty where it wrote nothing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
    except OSError:
        return ""
    return "; ".join(lines[-3:])[-_TOLD:]


def end(process: subprocess.Popen[bytes], patience: float = 10) -> None:
    """Ask it to end; kill it where it does not within `patience` seconds."""
    process.terminate()
    try:
        process.wait(patience)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
