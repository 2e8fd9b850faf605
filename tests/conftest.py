"""What holds for every test: which tree is tested, and how property tests draw."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

import suffice

settings.register_profile("house", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("house")


def pytest_configure() -> None:
    """Refuse to test another tree than this one: a copied environment points at the old place."""
    here = Path(__file__).resolve().parent.parent / "src"
    loaded = Path(suffice.__file__).resolve()
    if here not in loaded.parents:
        raise pytest.UsageError(f"suffice is imported from {loaded}, not from {here}; run `make clean test`")
