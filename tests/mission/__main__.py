"""Checks nine capabilities over HTTP against a server with known truth, and prints a table.

python -m tests.mission            all of them, about ten minutes
python -m tests.mission rollout    those whose names match
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Table:
    """Collects the tests' results, a row each."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not report.failed:
            return
        file, _, name = report.nodeid.partition("::")
        capability = Path(file).stem.removeprefix("test_").replace("_", " ")
        asserted = name.removeprefix("test_").replace("_", " ")
        output = dict(report.user_properties)
        result = "pass" if report.passed else f"FAIL: {_reason(report)}"
        result += f"; {output['figures']}" if output.get("figures") else ""
        self.rows.append((capability, asserted, f"{output.get('requests', 0):,}", f"{report.duration:.0f}", result))

    def lines(self) -> list[str]:
        head = ("capability", "what is asserted", "requests", "seconds", "result")
        return ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *self.rows)]


def _reason(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr).splitlines()[0].replace("|", "/")[:160]


def main(words: list[str]) -> int:
    files = sorted(HERE.glob("test_*.py"))
    wanted = [str(file) for file in files if not words or any(word in file.stem for word in words)]
    if not wanted:
        print(f"nothing matches; there are {', '.join(file.stem.removeprefix('test_') for file in files)}")
        return 2
    table = Table()
    status = pytest.main(["-q", "-m", "", "-p", "no:cacheprovider", *wanted], plugins=[table])
    print("\n".join(table.lines()))
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
