"""The part of a page of documentation that a command has written."""

from __future__ import annotations

__all__ = ["replace_screen", "screen_in"]

BEGIN, END = "<!-- screen: begin -->\n```text\n", "```\n<!-- screen: end -->"


def replace_screen(page: str, screen: str) -> str:
    """`page` with `screen` between its marks. Raises `ValueError` without them."""
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    return page[:before] + screen + "\n" + page[after:]


def screen_in(page: str) -> str:
    """What stands between the marks."""
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)].removesuffix("\n")
