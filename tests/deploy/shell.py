"""Runs the shell blocks of a page, with `suffice` of this tree on the path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.house.tree import ROOT, blocks


def shell_blocks(page: str) -> list[str]:
    return [block.text for block in blocks(ROOT / "docs" / "how-to" / page) if block.language == "sh"]


def run_block(text: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a block as one script that ends at its first error; its output is for the reader of a failed test."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    suffice = tools / "suffice"
    paths = os.pathsep.join(path for path in sys.path if path)
    entry = "from suffice.cli.main import main; main()"
    suffice.write_text(f'#!/bin/sh\nPYTHONPATH="{paths}" exec {sys.executable} -c "{entry}" "$@"\n', encoding="utf-8")
    suffice.chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= variables
    environ["PATH"] = f"{tools}{os.pathsep}{environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-euc", text], cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done
