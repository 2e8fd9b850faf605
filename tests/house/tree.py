"""The tree as the gates see it: files, syntax trees, code blocks in docs. Knows no rule."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "suffice"
DOCS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md")))
NOT_OURS = {"dist", "build", "demo-out", "__pycache__"}
HIDDEN_BUT_OURS = {".ci", ".github", ".gitignore", ".pre-commit-config.yaml"}
BLOCK = re.compile(r"(?P<mark><!-- no-run -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced code block of a document."""

    path: Path
    line: int  # of its first line of code
    language: str
    text: str
    not_run: bool  # marked with <!-- no-run --> on the line before it


def files() -> list[Path]:
    """Every file that is, or would be, under version control."""
    git = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if git.returncode == 0 and git.stdout:
        result = [ROOT / name for name in git.stdout.decode().split("\0") if name]
    else:
        result = [path for path in ROOT.rglob("*") if not _is_left_over(path)]
    return sorted(path for path in set(result) if path.is_file() and path.suffix != ".pyc")


def _is_left_over(path: Path) -> bool:
    """Without version control to ask: was it made by a tool?"""
    parts = set(path.relative_to(ROOT).parts)
    return bool(NOT_OURS & parts) or any(p.startswith(".") and p not in HIDDEN_BUT_OURS for p in parts)


def python_files(*folders: str) -> list[Path]:
    """Our Python files below the folders."""
    return [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def parsed(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def short(path: Path) -> str:
    """The path as people write it."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a Markdown file, in order."""
    text = path.read_text(encoding="utf-8")
    for result in BLOCK.finditer(text):
        line = text.count("\n", 0, result.start("text")) + 1
        yield Block(path, line, result["language"], result["text"], result["mark"] is not None)
