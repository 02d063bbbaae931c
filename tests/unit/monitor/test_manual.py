"""docs/monitor.md is the schema."""

from __future__ import annotations

from pathlib import Path

from fdstash.monitor.manual import reference
from fdstash.monitor.vocabulary import SCHEMA

PAGE = Path(__file__).parents[3] / "docs" / "monitor.md"
MARK = "<!-- What follows is generated from the schema: python -m fdstash.monitor.manual -->\n"


def test_the_reference_of_the_page_is_that_of_the_schema() -> None:
    _, mark, generated = PAGE.read_text().partition(MARK)
    assert mark
    assert generated.strip() == reference(SCHEMA).strip()
