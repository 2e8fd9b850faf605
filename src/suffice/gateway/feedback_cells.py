"""Rows of a table as feedback: which column is which field, and what a cell of text means there.

    cells of a row ──▶ body ──▶ an object as `/v1/feedback` takes it

Pure. A table has columns of its owner's; a plan names those that are fields. Knows cells and declared metrics; refuses
to know files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from suffice.errors import BadRequest, ConfigError
from suffice.gateway.feedback_form import FIELDS, Declared

METRICS: Final = "metrics."  # how a field begins that is a metric
_FLAGS: Final[Mapping[str, bool]] = {
    "true": True,
    "yes": True,
    "1": True,
    "1.0": True,
    "false": False,
    "no": False,
    "0": False,
    "0.0": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackMapping:
    """Where the fields of feedback come from."""

    columns: Mapping[str, str]  # field: column
    fixed: Mapping[str, str]  # field: the same cell for every row
    unused: tuple[str, ...]  # columns that are no field

    def column_of(self, field: str | None) -> str | None:
        """The column behind a field that an error names."""
        return self.columns.get(field or "", field)


def plan(columns: Iterable[str], mapped: Iterable[str], fixed: Iterable[str], declared: Declared) -> FeedbackMapping:
    """Match the columns of a table with fields: by `--map FIELD=COLUMN`, `--set FIELD=VALUE`, then by name.

    Raises ConfigError for a field or a column that there is not.
    """
    known = list(columns)
    fields = [*(field for field in FIELDS if field != "metrics"), *(f"{METRICS}{name}" for name in declared)]
    given, set_to = _pairs("--map", mapped, fields), _pairs("--set", fixed, fields)
    for field, column in given.items():
        if column not in known:
            raise ConfigError(f"--map: {field}: there is no column {column!r}; there are: {', '.join(known)}")
    taken = {*given.values()}
    by_name = {name: name for name in known if name in (*fields, "metrics") and name not in taken | given.keys()}
    found = {field: column for field, column in (by_name | given).items() if field not in set_to}
    used = set(found.values())
    return FeedbackMapping(columns=found, fixed=set_to, unused=tuple(name for name in known if name not in used))


def _pairs(option: str, given: Iterable[str], fields: list[str]) -> dict[str, str]:
    found = {}
    for one in given:
        field, equals, value = one.partition("=")
        if not equals or not value:
            raise ConfigError(f"{option}: got {one!r}; it is written FIELD=…")
        if field not in fields:
            raise ConfigError(f"{option}: unknown field {field!r}; known: {', '.join(fields)}")
        found[field] = value
    return found


def body(cells: Mapping[str, Any], by: FeedbackMapping, declared: Declared) -> dict[str, Any]:
    """One row as an object; a cell that is empty or null is not given. Raises BadRequest, `param` is the field.

    A row without a `feedback_id` gets one that is made of what it says, so that the same table may be read again.
    """
    raw = dict(by.fixed) | {field: cells.get(column) for field, column in by.columns.items()}
    given, metrics = dict[str, Any](), dict[str, Any]()
    for field, cell in raw.items():
        if cell is None or cell == "":
            continue
        if field == "metrics":
            metrics |= cell if isinstance(cell, Mapping) else {}
        elif field.startswith(METRICS):
            name = field.removeprefix(METRICS)
            metrics[name] = _metric(field, cell, declared[name].type)
        else:
            read = _READ.get(field)
            given[field] = _text(cell) if read is None else read(field, cell)
    if metrics:
        given["metrics"] = metrics
    if "feedback_id" not in given:
        told = msgspec.json.encode(given, order="sorted")
        given["feedback_id"] = f"import:{hashlib.blake2b(told, digest_size=12).hexdigest()}"
    return given


def _metric(field: str, cell: Any, kind: str) -> Any:
    if kind == "boolean":
        return _flag(field, cell)
    return _text(cell) if kind == "category" else _number(field, cell)


def _flag(field: str, cell: Any) -> bool:
    found = _FLAGS.get(str(cell).strip().lower())
    if found is None:
        raise BadRequest(f"{field}: must be true or false, got {str(cell)[:40]!r}", param=field)
    return found


def _number(field: str, cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise BadRequest(f"{field}: must be a number, got {str(cell)[:40]!r}", param=field) from None


def _whole(field: str, cell: Any) -> int:
    value = _number(field, cell)
    if not value.is_integer():
        raise BadRequest(f"{field}: must be a whole number, got {str(cell)[:40]!r}", param=field)
    return int(value)


def _thumbs(_: str, cell: Any) -> str:
    said = str(cell).strip().lower()
    flag = _FLAGS.get(said)
    return said if flag is None else "up" if flag else "down"


def _text(cell: Any) -> str:
    """A cell as text: a whole number that a table keeps with a fraction is written without it."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


_READ: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "correct": _flag,
    "rating": _whole,
    "propensity": _number,
    "thumbs": _thumbs,
}
