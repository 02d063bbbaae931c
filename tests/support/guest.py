"""A guest in QEMU, without hardware support, that writes to a disk on an NBD server."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.guest_kernel import kernel, make_initramfs
from tests.support.need import need_program, plain_environment

__all__ = ["SECTOR", "Guest", "stamped"]

SECTOR = 512
_WORDS = "console=ttyS0 loglevel=4 panic=-1 reboot=t edd=off"
_TAG = 0xFD57 << 48


def stamped(account: bytes) -> bytes:
    """The content of a disk whose sectors have these generations, 32 bits each."""
    generations = memoryview(account).cast("I")
    return b"".join(
        ((_TAG | sector).to_bytes(8, "little") + generation.to_bytes(8, "little")) * (SECTOR // 16)
        if generation
        else bytes(SECTOR)
        for sector, generation in enumerate(generations)
    )


class Guest:
    """The machine, from its start to the end of the block; what it said is in each failure.

    tests/support/guest_init.c says what it does.
    """

    def __init__(
        self, folder: Path, socket: str, size: int, *, writes: int, seed: int, patience: float
    ) -> None:
        """`socket`: of the server whose first export, `size` bytes, is its disk.

        `writes`: of each of its processes in each round. `patience`: seconds that it may live.
        """
        found = kernel()
        initramfs = folder / "initramfs"
        make_initramfs(initramfs, found.modules)
        self._account = folder / "account"
        with self._account.open("wb") as file:
            file.truncate(size // SECTOR * 4)
        disks = {
            "disk": f"driver=nbd,server.type=unix,server.path={socket}",
            "account": f"driver=file,filename={self._account}",
        }
        command = [need_program("qemu-system-x86_64", "qemu-system-x86"), "-accel", "tcg"]
        command += "-machine q35 -m 256 -nodefaults -no-user-config -no-reboot".split()
        command += ["-display", "none", "-serial", "stdio"]
        command += ["-kernel", str(found.image), "-initrd", str(initramfs)]
        command += ["-append", f"{_WORDS} WRITES={writes} SEED={seed}"]
        for name, options in disks.items():
            inner = ",".join(f"file.{each}" for each in options.split(","))
            command += ["-drive", f"if=none,id={name},{inner},format=raw,cache=none,discard=unmap"]
            errors = "werror=report,rerror=report"
            command += ["-device", f"virtio-blk-pci,drive={name},serial={name},{errors}"]
        self._said: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._started = time.monotonic()
        self._until = self._started + patience
        #: Seconds until its program ran; None before.
        self.boot_seconds: float | None = None
        self._process = subprocess.Popen(
            command,
            env=plain_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name="guest")
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put(None)

    @property
    def console(self) -> str:
        """All that it has said and that was heard."""
        return "\n".join(self._said)

    def run(self, phase: Callable[[str], str]) -> dict[str, int]:
        """To its end; what it did. Fails where anything was wrong.

        `phase` is asked for an answer to "writes" and "reads", which the guest waits for; "end"
        is the one that ends it.
        """
        while (word := self._hear()) in ("writes", "reads"):
            self._answer(phase(word))
        further = [word]
        while further[-1] is not None:
            further.append(self._hear())
        status = self._process.wait(20)
        told = f"status {status}, the guest said:\n{self.console}"
        assert word is not None, told
        assert word.startswith("done "), told
        assert len(further) == 2, told
        assert status == 0, told
        assert "I/O error" not in told, told
        return {name: int(n) for name, n in (each.split("=") for each in word.split()[1:])}

    def _hear(self) -> str | None:
        """The next that its program says; None: the machine has ended."""
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, self._until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the guest takes too long:\n{self.console}") from None
            if line is None:
                return None
            self._said.append(line)
            # What firmware has said may stand before it on the line.
            _, mark, word = line.partition("guest: ")
            if mark and word == "up":
                self.boot_seconds = time.monotonic() - self._started
            elif mark:
                return word

    def _answer(self, word: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is heard next
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()

    def account(self) -> bytes:
        """The generation of each sector, 32 bits each; after `run`."""
        return self._account.read_bytes()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(20)
        self._reader.join(20)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
