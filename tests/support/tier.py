"""The two tiers of tests: the short one, and the full one that an issue is resolved by."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FULL = os.environ.get("FDSTASH_FULL") == "1"

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"


def count(n: int) -> int:
    """How often to do what the full tier does n times: a twentieth in the short one."""
    return n if FULL else max(1, n // 20)


def evidence(name: str, record: Mapping[str, Any]) -> None:
    """Keeps what the full tier has found as docs/evidence/NAME.json; the short tier keeps none, and
    a sanitizer, which makes everything slow, neither.
    """
    if not FULL or os.environ.get("FDSTASH_SANITIZER"):
        return
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    found = {"kernel": platform.release(), "cpus": os.cpu_count(), **record}
    path = EVIDENCE / f"{name}.json"
    path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
