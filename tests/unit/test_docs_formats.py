"""The driver that docs/formats.md shows is the one that the tests run."""

from __future__ import annotations

from pathlib import Path

from fdstash.formats.tables import TableFormat

ROOT = Path(__file__).parents[2]
SHOWN = ROOT / "tests" / "support" / "toy_format.py"
PAGE = ROOT / "docs" / "formats.md"


def test_the_page_shows_the_driver_that_is_tested() -> None:
    code = SHOWN.read_text()
    start = code.index("CLUSTER = ")
    made, driver = code.index("def make("), code.index("class Toy(")
    shown = f"{code[start:made]}{code[driver:]}".rstrip()
    block = PAGE.read_text().partition("<!-- toy: begin -->\n")[2].partition("<!-- toy: end -->")[0]
    assert block == f"```python\n{shown}\n```\n"


def test_the_page_names_every_method_that_a_driver_may_have() -> None:
    page = PAGE.read_text()
    own = {name for name in vars(TableFormat) if not name.startswith("_")}
    unnamed = {name for name in own if f"`{name}" not in page}
    assert unnamed == set()
