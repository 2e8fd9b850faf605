"""A few hundred inputs of `tools/fuzz.py`; the program itself runs for as long as one likes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[2] / "tools" / "fuzz.py"


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_parser_breaks_or_takes_longer_than_it_may(capsys: pytest.CaptureFixture[str]) -> None:
    status = program().main(["--inputs", "15", "--seed", "1", "--slack", "3"])
    report = capsys.readouterr()
    assert status == 0, report.err
    assert "chat body" in report.out
