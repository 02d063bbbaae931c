"""Where the `fdstash` command starts."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]

_NEEDS = ("click", "rich")


def main() -> None:
    """Run the command line; exits with 2 and says what to do where its extras are missing."""
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        print(
            f"fdstash: the command line needs {' and '.join(missing)}: pip install 'fdstash[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from fdstash.cli.app import app  # noqa: PLC0415 - only now is it known to be importable

    app(prog_name="fdstash")


if __name__ == "__main__":
    main()
