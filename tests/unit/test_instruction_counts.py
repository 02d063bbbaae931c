"""The C side does not grow unnoticed: callgrind's counts beside the recorded ones."""

from __future__ import annotations

import pytest

from bench import instructions
from tests.support.need import missing

#: What another patch level of the compiler or of libc may change.
TOLERANCE = 0.10


@pytest.mark.slow
def test_reopens_and_requests_take_as_many_instructions_as_recorded() -> None:
    series = instructions.series()
    recorded = instructions.baselines().get(series)
    if recorded is None:
        known = ", ".join(instructions.baselines()) or "nothing"
        missing(f"no baseline for {series}, only for {known}: {instructions.RECORD}")
    counted = instructions.count()
    assert counted["instructions"].keys() == recorded["instructions"].keys()
    beyond = []
    for case, count in counted["instructions"].items():
        was = recorded["instructions"][case]
        print(f"{case}: {count} instructions, recorded {was}")
        if abs(count / was - 1) > TOLERANCE:
            beyond.append(f"{case}: {count} instructions, recorded {was} ({count / was - 1:+.1%})")
    if beyond:
        found = "\n".join(beyond)
        with_what = {key: (recorded.get(key), counted.get(key)) for key in ("compiler", "libc")}
        pytest.fail(
            f"{found}\nrecorded with, counted with: {with_what}\n"
            f"if the change is meant, record it: {instructions.RECORD}",
            pytrace=False,
        )
