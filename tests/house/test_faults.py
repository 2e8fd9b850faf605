"""The page on faults and the promises of the README name tests that exist; the threat model names all attacks."""

from __future__ import annotations

import ast
import re

import pytest

from tests.faults.table import PAGE, Row, rows
from tests.house.tree import ROOT

ROWS = rows(PAGE.read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMISES = [line for line in README.splitlines() if re.match(r"\| P\d+ \| ", line)]


def exists(test: str) -> bool:
    path, _, name = test.partition("::")
    file = ROOT / path
    if not name or not file.exists():
        return file.exists()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == name for n in tree.body)


def test_every_row_of_the_page_names_a_test() -> None:
    text = PAGE.read_text(encoding="utf-8")
    n_lines = sum(line.startswith("| ") and not line.startswith(("| fault ", "| --- ")) for line in text.splitlines())
    assert n_lines == len(ROWS) > 30


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.test.rpartition("::")[2])
def test_each_named_test_exists(row: Row) -> None:
    assert exists(row.test), row.test


def test_every_file_of_attacks_is_named_in_the_threat_model() -> None:
    model = (ROOT / "docs" / "reference" / "security.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in (ROOT / "tests" / "attacks").glob("test_*.py"))
    assert files
    assert not [name for name in files if f"`{name}`" not in model]


@pytest.mark.parametrize("line", PROMISES, ids=lambda line: line[2:5].strip())
def test_each_promise_names_its_tests(line: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", line)
    assert named, line
    assert all(exists(test) for test in named), line
