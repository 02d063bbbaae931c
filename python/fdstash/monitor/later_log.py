"""What a command tells the log once its client has the answer.

A line wakes the thread that writes it, which then wants the interpreter: before the answer that
would be time that the client waits.
"""

from __future__ import annotations

import logging
import threading

__all__ = ["LaterLog"]


class LaterLog:
    """Keeps the lines of each thread until that thread calls `write`."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._kept = threading.local()

    def info(self, message: str, *values: object) -> None:
        """As `logging.Logger.info`, later. `values` do not change meanwhile."""
        self._lines().append((message, values))

    def write(self) -> None:
        """Log what this thread has kept."""
        lines = self._lines()
        for message, values in lines:
            self._log.info(message, *values)
        lines.clear()

    def _lines(self) -> list[tuple[str, tuple[object, ...]]]:
        lines: list[tuple[str, tuple[object, ...]]] | None = getattr(self._kept, "lines", None)
        if lines is None:
            lines = self._kept.lines = []
        return lines
