"""Packages that only some adapters need: imported when such an adapter is."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["peer"]


def peer(module: str, package: str) -> Any:
    """The module `module`, which the package `package` of the registry holds.

    Raises `ImportError`, with `name` the module, that says what to install. The
    result is untyped: a type checker need not have the package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this adapter needs {module}, which cannot be imported ({error});"
            f" `pip install {package}` installs it",
            name=module,
        ) from error
