"""The results file: one JSON line per finished cell, with a fingerprint of the code that produced it.

An interrupted run resumes. Lines of other code are kept but not counted; comments and docstrings do not count as code.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
MADE_BY = (
    "src/suffice/learn/audits.py",
    "src/suffice/learn/version.py",
    "src/suffice/certification/certifier.py",
    "src/suffice/certification/certifier_epoch.py",
    "src/suffice/certification/claims.py",
    "src/suffice/certification/level_watch.py",
    "src/suffice/assurance/certify.py",
    "src/suffice/assurance/labels.py",
    "src/suffice/assurance/drift.py",
    "tests/simulators/traffic_worlds",
    "bench/claims/streams.py",
    "bench/claims/truth.py",
    "bench/claims/course.py",
    "bench/claims/score.py",
    "bench/claims/cells.py",
    "bench/claims/window.py",
    "bench/claims/naive.py",
    "bench/claims/empirical.py",
    "src/suffice/certification/certificate.py",
)
Cell: TypeAlias = tuple[str, str, int]  # setting, design, seed
Line: TypeAlias = dict[str, Any]  # as `cells.run_cell` returns it


def arguments(prog: str, about: str, *, only: str) -> argparse.Namespace:
    """What was asked for on the command line: seeds, only, jobs, ray, results, table.

    only  what the words of `--only` choose among
    """
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--seeds", type=int, default=200, help="seeds 0 … N - 1 of every cell")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help=f"{only} and designs to run")
    parser.add_argument("--jobs", type=int, default=2, help="processes, or tasks of Ray at a time")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster; local: on a Ray of this machine")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "claims.jsonl", help="where lines are kept")
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables of what is there")
    return parser.parse_args()


def code_mark() -> str:
    """Twelve hex digits that say which code makes a cell."""
    return mark_of(ROOT / name for name in MADE_BY)


def mark_of(places: Iterable[Path]) -> str:
    """Twelve hex digits of the code in these files and folders, comments and docstrings left out."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.name.encode())
            digest.update(ast.dump(_without_words(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()[:12]


def _without_words(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def lines(path: Path) -> Iterator[Line]:
    """Every whole line; a line that a crash cut off is left out."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue


def cell_of(line: Line) -> Cell:
    return line["setting"], line["design"], line["seed"]


def append(path: Path, line: Line) -> None:
    """Write one line and bring it to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        cut_off = False
        if file.tell():
            file.seek(file.tell() - 1)
            cut_off = file.read(1) != "\n"
        file.write(("\n" if cut_off else "") + json.dumps(line) + "\n")
