"""Which runs are meant: `task=mmlu_pro,model!=gpt*` as a test on columns. Pure.

Conditions on one column with `=` are alternatives; conditions on different columns, and all with
`!=`, must hold together. A star stands for any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.replay.traces.columns import TextColumn, TraceColumns

COLUMNS: Final = ("dataset", "setting", "task", "model", "run", "question_id")


@dataclass(frozen=True, slots=True)
class Where:
    """A parsed selection."""

    text: str
    wanted: Mapping[str, tuple[str, ...]]  # column → alternatives
    unwanted: Mapping[str, tuple[str, ...]]  # column → what it must not be

    def holds(self, columns: TraceColumns) -> NDArray[np.bool_]:
        """For each run: is it meant?"""
        chosen = np.ones(len(columns), dtype=bool)
        for name, patterns in self.wanted.items():
            chosen &= _matches(columns.texts[name], patterns)
        for name, patterns in self.unwanted.items():
            chosen &= ~_matches(columns.texts[name], patterns)
        return chosen


def parse_where(text: str) -> Where:
    """Read conditions, separated by commas. Raises ConfigError with what is allowed."""
    wanted: dict[str, tuple[str, ...]] = {}
    unwanted: dict[str, tuple[str, ...]] = {}
    for condition in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(!?=)\s*(.*?)\s*", condition, re.DOTALL)
        if match is None or match[1] not in COLUMNS:
            allowed = f"COLUMN=VALUE or COLUMN!=VALUE with a column of {', '.join(COLUMNS)}"
            raise ConfigError(f"where: cannot read {condition.strip()!r:.100}; allowed: {allowed}")
        chosen = wanted if match[2] == "=" else unwanted
        chosen[match[1]] = (*chosen.get(match[1], ()), match[3])
    return Where(text, wanted, unwanted)


def _matches(column: TextColumn, patterns: tuple[str, ...]) -> NDArray[np.bool_]:
    tests: list[Callable[[str], object]] = [
        re.compile(re.escape(pattern).replace(r"\*", ".*"), re.DOTALL).fullmatch for pattern in patterns
    ]
    by_code = np.array([any(test(word) for test in tests) for word in column.words] + [False], dtype=bool)
    found: NDArray[np.bool_] = by_code[column.codes]
    return found
