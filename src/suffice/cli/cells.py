"""Cells of a table for other programs: what a spreadsheet would take for a formula is text there."""

from __future__ import annotations

from typing import Final

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")  # how a cell begins that a spreadsheet would compute


def cell(value: object) -> str:
    """A value as text of a cell; None is empty. Words that begin like a formula get a quote in front."""
    if value is None:
        return ""
    text = str(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"'{text}" if text.startswith(FORMULA) and not is_number else text
