"""The generated parts of the reference are what the code says; `make docs` writes them."""

from __future__ import annotations

from tools.reference_pages import stale_pages


def test_generated_pages_are_current() -> None:
    assert stale_pages(write=False) == [], "run make docs"
