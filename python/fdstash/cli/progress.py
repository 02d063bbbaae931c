"""A bar on standard error for what takes long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

__all__ = ["progress_bar"]

#: `report(stage, done, total)`.
Report = Callable[[str, int, int], None]


@contextmanager
def progress_bar(
    titles: Mapping[str, str], *, forced: bool, every: int = 10
) -> Iterator[Report | None]:
    """A bar for each stage, named by `titles`; None where that is no terminal.

    `forced`: also where it is none. Drawn again when `done` is a multiple of `every`.
    """
    if not (forced or sys.stderr.isatty()):
        yield None
        return
    from rich import progress as rich  # noqa: PLC0415 - only who shows a bar needs it
    from rich.console import Console  # noqa: PLC0415 - as above

    columns = (
        rich.TextColumn("{task.description:<15}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
    )
    tasks: dict[str, rich.TaskID] = {}
    console = Console(stderr=True, force_terminal=forced or None)
    with rich.Progress(*columns, console=console, auto_refresh=False) as bar:

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(titles[stage], total=total)
            if done % every == 0 or done == total:
                bar.update(tasks[stage], completed=done, refresh=True)

        yield report
