"""Boot GRUB from a disk that is reopened meanwhile, and print the screen.

`--into docs/emulators.md` writes it into that page instead.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from examples.pc.demonstration import Demonstration, Step
from examples.pc.hard_disk import SUBFORMAT
from examples.pc.page import replace_screen

__all__ = ["main"]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.pc")
    parser.add_argument("--subformat", default=SUBFORMAT, help="of the VMDK")
    parser.add_argument("--chs", action="store_true", help="a BIOS without extensions")
    parser.add_argument("--type", action="append", default=[], metavar="TEXT", help="typed last")
    parser.add_argument("--json", action="store_true", help="say all that was counted")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write it between its marks")
    return parser.parse_args()


def told(step: Step) -> str:
    """A line about a step in which the disk was reopened."""
    (change,) = step.change.items()
    return (
        f"{'='.join(change):<15}  {step.files_changed} of {step.files} files,"
        f" {step.reads_meanwhile} reads served meanwhile, for: {step.command}"
    )


def main() -> None:
    """Run it as the command line says."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        shown = Demonstration(Path(folder), options.subformat, extensions=not options.chs)
        try:
            steps = list(shown.run(options.type))
            screen = shown.computer.screen
            statuses = shown.computer.disk.statuses
        finally:
            shown.close()
        files = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*.*"))
    if options.json:
        print(
            json.dumps(
                {
                    "screen": screen,
                    "steps": [asdict(step) for step in steps],
                    "statuses": [[*key, count] for key, count in sorted(statuses.items())],
                    "files": files,
                }
            )
        )
        return
    reopens = [told(step) for step in steps if step.change]
    text = "\n".join([*screen, "Reopened while GRUB was at work:", *reopens]).strip("\n")
    if options.into is not None:
        options.into.write_text(replace_screen(options.into.read_text(), text))
    else:
        print(text)


if __name__ == "__main__":
    main()
