"""The core is a function of its arguments: no clock, no dice, no files. Imports are held by import-linter."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.house.tree import SRC, parsed, python_files, short

CORE = ("settings", "signals", "policy", "scoring", "assurance", "model", "rollout", "review")
CORE_FILES = [
    path
    for path in python_files("src")
    if path.relative_to(SRC).parts[0] in CORE
    or path in (SRC / "types.py", SRC / "errors.py", SRC / "upstream" / "wire.py")
]
CLOCKS = {"now", "utcnow", "today", "time", "monotonic", "perf_counter"}
DICE = {"random", "randint", "randrange", "choice", "choices", "shuffle", "sample", "uniform", "seed"}
FILES = {"open", "input", "exec", "eval", "__import__"}


def impure_calls(path: Path) -> list[str]:
    """Calls that read a clock, shared dice or a file, by line."""
    found = []
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in FILES:
            found.append(f"{node.lineno}: {called.id}()")
        if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
            continue
        owner, verb = called.value.id, called.attr
        if owner in {"datetime", "date", "time"} and verb in CLOCKS:
            found.append(f"{node.lineno}: {owner}.{verb}()")
        if owner == "random" and verb in DICE:
            found.append(f"{node.lineno}: random.{verb}(); take rng: random.Random")
    return found


@pytest.mark.parametrize("path", CORE_FILES, ids=short)
def test_the_core_asks_nobody(path: Path) -> None:
    assert impure_calls(path) == []


def test_the_gate_sees_what_it_forbids(tmp_path: Path) -> None:
    guilty = tmp_path / "guilty.py"
    guilty.write_text("import random\nrandom.choice([1])\ndatetime.now()\nopen('x')\n", encoding="utf-8")
    assert len(impure_calls(guilty)) == 3
    assert len(CORE_FILES) >= 10


@pytest.mark.parametrize(
    "path", [path for path in python_files("src") if path.relative_to(SRC).parts[0] != "store"], ids=short
)
def test_only_the_store_knows_its_database(path: Path) -> None:
    """A second database is a second file of `store`, not a change of everything that reads the log."""
    imported = [
        name
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    ]
    assert "sqlite3" not in imported
    assert ".execute(" not in path.read_text(encoding="utf-8"), "a query belongs into a reader of the store"
