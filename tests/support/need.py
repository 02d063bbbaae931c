"""What a test needs of the machine: its lack is a failure, not a skip, unless allowed."""

from __future__ import annotations

import importlib
import os
import shutil
from typing import Any, NoReturn

import pytest

__all__ = ["missing", "need_package", "need_program", "need_root", "plain_environment"]


def missing(what: str) -> NoReturn:
    """End the test: a machine that lacks `what` would otherwise pass by doing nothing."""
    if os.environ.get("FDSTASH_ALLOW_SKIP") == "1":
        pytest.skip(what)
    pytest.fail(f"{what} (FDSTASH_ALLOW_SKIP=1 makes this a skip)", pytrace=False)


def need_root(purpose: str) -> None:
    if os.geteuid() != 0:
        missing(f"root is needed for {purpose}")


def plain_environment() -> dict[str, str]:
    """The environment for system programs: they bear neither a sanitizer nor the fault shim."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def need_program(name: str, package: str) -> str:
    """Full path of a program; sbin is searched too, which a user's PATH may leave out."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        missing(f"{name} is needed (Debian: {package})")
    return found


def need_package(module: str, package: str) -> Any:
    """The module of a peer; imported by the test that needs it, and not when it is collected."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing(f"the package {package} is needed (extra `peers`): {error}")
