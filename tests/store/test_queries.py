"""Both databases have the same queries: each of one name takes the same parameters, and its server can prepare it."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import fields

from suffice.store import sql
from suffice.store.database import schema
from suffice.store.rows.sums import RollupSums
from suffice.store.sql import load_queries

FOLDER = Path(sql.__file__).parent
DIALECTS = ("sqlite", "postgres")
HEAD = re.compile(r"(?m)^-- name: (\w+)\(([\w, ]*)\)$")


def heads(dialect: str) -> dict[str, str]:
    found = HEAD.findall((FOLDER / f"{dialect}.sql").read_text("utf-8"))
    assert len(found) == len(dict(found)), "a name is taken once"
    return dict(found)


def test_both_files_have_the_same_names_with_the_same_parameters() -> None:
    assert heads("sqlite") == heads("postgres")
    assert [*heads("sqlite")] == [*heads("postgres")], "in the same order"
    for dialect in DIALECTS:
        assert [*load_queries(dialect)] == [*heads(dialect)]


def test_the_schema_has_a_column_for_each_sum_and_an_index_for_each_group_of_kinds() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        schema.create(connection, "memory")
        columns = {name: kind for _, name, kind, *_ in connection.execute("PRAGMA table_info(rollups)")}
        indexes = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index'"))
    types = {one.name: "REAL" if isinstance(one.default, float) else "INTEGER" for one in fields(RollupSums)}
    assert {name: columns[name] for name in types} == types
    for name, kinds in schema.INDEXED_KINDS.items():
        assert re.findall(r"'(\w+)'", indexes[name]) == [*kinds]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_migration_has_its_script(dialect: str) -> None:
    scripts = [name for name in load_queries(dialect) if name.startswith("schema_")]
    assert scripts == [one.name for one in (schema.FIRST, *schema.MIGRATIONS)]
