"""Results as JSON: one flat object for each set and policy, and everything of a report as one value.

Pure. What is not a number becomes null. A text that a spreadsheet would take for a formula (it begins
with = + - @ or a control character) gets an apostrophe in front, as spreadsheets themselves do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, Final

from suffice.cells import computes
from suffice.replay.study.result import PolicyResult, SetReport

FIRST: Final = (
    "set",
    "policy",
    "n_episodes",
    "n_questions",
    "full_em",
    "em",
    "em_drop",
    "lost",
    "gained",
    "full_tokens",
    "tokens",
    "token_reduction",
    "token_reduction_without_probes",
    "em_drop_interval",
    "frozen",
)


def line_object(line: PolicyResult) -> dict[str, Any]:
    """One line of the table: the keys of FIRST in their order, then all others. Intervals are [low, high]."""
    values = {field.name: getattr(line, field.name) for field in fields(line)} | {"frozen": line.frozen}
    ordered = [*FIRST, *(name for name in values if name not in FIRST)]
    return {name: _plain(values[name]) for name in ordered}


def json_lines(reports: Iterable[SetReport]) -> str:
    """Every line of every set as JSON lines."""
    return "".join(dump_json(line_object(line)) + "\n" for report in reports for line in report.lines)


def report_object(report: SetReport) -> dict[str, Any]:
    """Everything of one set."""
    values = {field.name: getattr(report, field.name) for field in fields(report)}
    return {name: _plain(value) for name, value in values.items()} | {
        "lines": [line_object(line) for line in report.lines]
    }


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON: no NaN; characters beyond ASCII as they are, half a surrogate pair as its escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return text if text.isprintable() or not _has_surrogate(text) else json.dumps(value, allow_nan=False, indent=indent)


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _plain(value: Any) -> Any:
    """A value as JSON knows it."""
    if isinstance(value, str):
        return f"'{value}" if computes(value) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    inner = asdict(value)
    return [_plain(inner["low"]), _plain(inner["high"])] if inner.keys() == {"low", "high"} else _plain(inner)
