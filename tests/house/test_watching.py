"""Each row of the page "What watches what" names a fault test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (?P<part>[^|]+) \|.*\| `(?P<file>tests/[\w/]+\.py)::(?P<test>test_\w+)` \|$")


def test_each_row_of_the_page_names_a_fault_test() -> None:
    page = (ROOT / "docs" / "reference" / "watching.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| part", "| ---"))]
    assert len(lines) >= 12
    for line in lines:
        row = ROW.match(line)
        assert row is not None, line
        source = (ROOT / row["file"]).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {row['test']}\(", source, re.MULTILINE), row["test"]
