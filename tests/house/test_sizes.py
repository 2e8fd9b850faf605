"""The gates of STYLE: small files, small functions, telling names, a sentence for everything public."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import ROOT, SRC, files, parsed, python_files, short

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_BASE_DISTRIBUTIONS = 25
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
MAY_PRINT = (SRC / "cli", SRC / "local" / "server.py")
BANNED_MODULES = {
    "httpx": "a cancelled call can leave its pool unusable",
    "litellm": "it brings 60 distributions into the process that holds the keys",
    "pickle": "loading runs code",
    "marshal": "loading runs code",
    "shelve": "loading runs code",
}
BANNED_NAMES = {"BaseHTTPMiddleware": "it hides that the client has left"}
# Split, so that this file does not hold what it looks for.
REGISTRIES = ("pypi" + ".org", "python" + "hosted", "npm" + "js", "index" + "-url")
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|root|home|Users|opt)/[\w.-]+")

SOURCES = python_files("src")
ALL_PYTHON = python_files("src", "tests", "bench", "examples")
TEXTS = [path for path in files() if path.suffix not in {".png", ".gguf", ".ico", ".db"}]


def public_things(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every class and function that a reader of the module may use, with its dotted name."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("_"):
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")

    return walk(tree.body, "")


@pytest.mark.parametrize("path", ALL_PYTHON, ids=short)
def test_a_file_and_its_functions_fit_on_their_screens(path: Path) -> None:
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_FILE_LINES, f"{short(path)}: {n_lines} lines; split it"
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            where = f"{short(path)}:{node.lineno}: {node.name}"
            assert length <= MAX_FUNCTION_LINES, f"{where} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_source_uses_nothing_that_is_banned(path: Path) -> None:
    wrong = []
    may_print = any(path == place or place in path.parents for place in MAY_PRINT)
    for node in ast.walk(parsed(path)):
        imported: list[tuple[int, str]] = []
        if isinstance(node, ast.Import):
            imported = [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = (node.module or "", *(alias.name for alias in node.names))
            imported = [(node.lineno, name) for name in names]
        for line, name in imported:
            reason = BANNED_MODULES.get(name.split(".")[0]) or BANNED_NAMES.get(name)
            if reason:
                wrong.append(f"line {line}: {name}: {reason}")
        if may_print or not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id == "print":
            wrong.append(f"line {node.lineno}: print() outside the commands")
    assert not wrong, f"{short(path)}: {'; '.join(wrong)}"


def test_no_name_is_a_drawer_for_anything() -> None:
    vague = [short(path) for path in ALL_PYTHON if VAGUE_NAMES & {path.stem, path.parent.name}]
    assert not vague, f"say what it is about: {vague}"


def test_no_file_names_a_machine_or_a_registry() -> None:
    wrong = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8", errors="replace")
        wrong += [f"{short(path)}: {found}" for found in MACHINE_PATH.findall(text)]
        wrong += [f"{short(path)}: {host}" for host in REGISTRIES if host in text]
    assert not wrong, wrong


def test_the_base_install_stays_small() -> None:
    text = (ROOT / "requirements" / "base.txt").read_text(encoding="utf-8")
    names = set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", text, re.MULTILINE | re.IGNORECASE))
    assert len(names) >= 10, "the file could not be read as a requirement file"
    assert len(names) <= MAX_BASE_DISTRIBUTIONS, f"{len(names)} distributions: {sorted(names)}"
