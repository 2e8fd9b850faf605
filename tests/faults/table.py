"""`make faults`: runs the tests that the page on faults names, and prints its table with their results."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "tests" / "faults" / "README.md"


@dataclass(frozen=True, slots=True)
class Row:
    """One fault, what is expected, and the test that holds it."""

    fault: str
    expected: str
    test: str  # path::name


def rows(page: str) -> list[Row]:
    """The rows of a page that name a test."""
    result = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if len(cells) == 3 and (test := re.fullmatch(r"`(tests/[\w/]+\.py::\w+)`", cells[2])):
            result.append(Row(cells[0], cells[1], test[1]))
    return result


class Results:
    """Counts how the cases of each test ended."""

    def __init__(self) -> None:
        self.ends: dict[str, list[str]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take one report: the call itself, or what failed around it."""
        if report.when == "call" or report.outcome != "passed":
            self.ends[report.nodeid.partition("[")[0]].append(report.outcome)

    def of(self, test: str) -> str:
        """The result of one test, or of a folder's, in words."""
        ends = [
            end for name, result in self.ends.items() if name == test or name.startswith(f"{test}/") for end in result
        ]
        if not ends:
            return "not run"
        n_good, n_skipped = ends.count("passed"), ends.count("skipped")
        if n_good + n_skipped < len(ends):
            return f"FAILED ({len(ends) - n_good - n_skipped} of {len(ends)})"
        return f"passed ({n_good}{f', {n_skipped} skipped' if n_skipped else ''})" if n_good else "skipped"


def run(table: Sequence[Row], *options: str, is_part: bool = False) -> bool:
    """Run the tests of the rows, and print both; whether every row holds.

    is_part  the options of pytest leave tests out, and with them rows
    """
    results = Results()
    pytest.main(["-q", "--no-header", *options, *dict.fromkeys(row.test for row in table)], plugins=[results])
    ran = [row for row in table if not is_part or results.of(row.test) != "not run"]
    for row in ran:
        sys.stdout.write(f"{results.of(row.test):<18} {row.fault} -> {row.expected}\n{'':<18} {row.test}\n")
    return all(results.of(row.test).startswith("passed") for row in ran)


def main() -> int:
    """The exit status is 1 when a row does not hold."""
    return int(not run(rows(PAGE.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    sys.exit(main())
