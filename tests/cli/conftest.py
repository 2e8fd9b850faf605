"""Commands write into the current folder: here it is one of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty when the test begins."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
