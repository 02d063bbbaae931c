"""Compiles the C helpers of the tests, on demand and once for each text of their sources."""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.need import plain_environment

__all__ = ["cache_folder", "compile_c"]


def cache_folder() -> Path:
    """Where built helpers are kept between runs; private, since they are preloaded and run."""
    parent = os.environ.get("FDSTASH_TEST_CACHE") or tempfile.gettempdir()
    folder = Path(parent) / f"fdstash-test-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise PermissionError(errno.EPERM, "not ours, and programs would be run from it", folder)
    return folder


def compile_c(
    sources: Sequence[Path], name: str, flags: Sequence[str], libraries: Sequence[str] = ()
) -> Path:
    """Compile with $CC or cc, once for each text of the sources."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    key = hashlib.sha256(repr((compiler, list(flags), list(libraries))).encode())
    for source in sorted(sources):
        key.update(source.read_bytes())
    target = cache_folder() / f"{key.hexdigest()[:16]}-{name}"
    if not target.exists():
        fresh = target.with_name(f"{target.name}.{os.getpid()}")
        inputs = [str(s) for s in sources if s.suffix == ".c"]
        command = [*compiler, *flags, *inputs, "-o", str(fresh), *libraries]
        done = subprocess.run(
            command, env=plain_environment(), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
        fresh.rename(target)
    return target
