"""Translates the SQL of the log's queries, which is written for SQLite, to PostgreSQL.

The queries keep to what both databases understand: `CAST` where a value of JSON is no text, `FILTER`, `ON CONFLICT`,
named subqueries. Functions that only SQLite has exist in our schema there (`json_extract`, `json_each`). The rest is
marks of parameters, and hints to SQLite's planner, which PostgreSQL does not need.
"""

from __future__ import annotations

import re
from functools import lru_cache

_TOKENS = re.compile(
    r"""(?P<kept>'(?:[^']|'')*'|::)
    |(?P<dropped>\bINDEXED\ BY\ \w+|\bNOT\ INDEXED\b|\+(?=(?:\w+\.)?kind\b))
    |(?P<cross>\bCROSS\ JOIN\b)
    |(?P<mark>\?)
    |:(?P<name>[a-z_]+)""",
    re.VERBOSE,
)


@lru_cache(maxsize=1_024)
def translate(query: str) -> tuple[str, tuple[str, ...]]:
    """Return the query for PostgreSQL, and the names of its parameters in order; () if they are numbered."""
    names, n_marks = list[str](), 0

    def replaced(token: re.Match[str]) -> str:
        nonlocal n_marks
        if token["mark"]:
            n_marks += 1
            return f"${n_marks}"
        if name := token["name"]:
            if name not in names:
                names.append(name)
            return f"${names.index(name) + 1}"
        return "JOIN" if token["cross"] else token["kept"] or ""

    return _TOKENS.sub(replaced, query), tuple(names)
