"""Both databases have the same queries: each of one name takes the same parameters, and its server can prepare it."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import fields

from suffice.store import sql
from suffice.store.database import schema
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.rows.sums import RollupSums
from suffice.store.sql import NamedQuery, load_queries
from tests.postgres import database_of, empty_log

FOLDER = Path(sql.__file__).parent
DIALECTS = ("sqlite", "postgres")
# How rows are appended differs, and a file needs no notes.
ALONE = {"insert_event", "append_events", "find_event", "find_events", "read_notes", "write_note"}
HEAD = re.compile(r"(?m)^-- name: (\w+)\(([\w, ]*)\)$")


def heads(dialect: str) -> dict[str, str]:
    result = HEAD.findall((FOLDER / f"{dialect}.sql").read_text("utf-8"))
    assert len(result) == len(dict(result)), "a name is taken once"
    return dict(result)


def test_both_files_have_the_same_names_with_the_same_parameters() -> None:
    shared, other = ({name: of for name, of in heads(one).items() if name not in ALONE} for one in DIALECTS)
    assert shared == other
    assert [*shared] == [*other], "in the same order"
    for dialect in DIALECTS:
        assert [*load_queries(dialect)] == [*heads(dialect)]


def test_the_schema_has_a_column_for_each_sum_and_an_index_for_each_group_of_kinds() -> None:
    with closing(SqliteConnection(":memory:")) as connection:
        schema.create(connection, "memory")
        columns = {name: kind for _, name, kind, *_ in connection.execute("PRAGMA table_info(rollups)")}
        indexes = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index'"))
    types = {one.name: "REAL" if isinstance(one.default, float) else "INTEGER" for one in fields(RollupSums)}
    assert {name: columns[name] for name in types} == types
    for name, kinds in schema.INDEXED_KINDS.items():
        assert re.findall(r"'(\w+)'", indexes[name]) == [*kinds]


MARKS = {"sqlite": re.compile(r"(?<!:):([a-z_]+)"), "postgres": re.compile(r"%\((\w+)\)[sb]")}
TEXTS = re.compile(r"'[^']*'|--.*")


def queries_of(dialect: str) -> dict[str, NamedQuery]:
    """All but the schema, with names of kinds for those that a caller gives."""
    return {
        name: query._replace(text=query.text.replace("{kinds}", "'request'"))
        for name, query in load_queries(dialect).items()
        if not name.startswith("schema_")
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_query_uses_the_parameters_that_it_names_and_no_others(dialect: str) -> None:
    for name, query in queries_of(dialect).items():
        text = TEXTS.sub("", query.text)
        in_order = [query.parameters[int(at) - 1] for at in re.findall(r"\?(\d+)", text)]
        assert {*MARKS[dialect].findall(text), *in_order} == {*query.parameters}, name


def test_sqlite_can_prepare_every_query() -> None:
    with closing(SqliteConnection(":memory:")) as connection:
        schema.create(connection, "memory")
        for query in queries_of("sqlite").values():
            values = [None] * len(query.parameters) if "?" in query.text else dict.fromkeys(query.parameters)
            connection.execute(f"EXPLAIN {query.text}", values)


def test_postgresql_can_prepare_every_query() -> None:
    with empty_log() as store:
        database = database_of(store)
        database.migrate(now_s=1.0)
        with database.reader() as connection:
            connection.begin()
            for name, query in queries_of("postgres").items():
                numbered = query.text.replace("%%", "%")
                for at, one in enumerate(query.parameters, 1):
                    numbered = re.sub(rf"%\({one}\)[sb]", f"${at}", numbered)
                connection.run_script(f"PREPARE {name} AS {numbered}")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_migration_has_its_script(dialect: str) -> None:
    scripts = [name for name in load_queries(dialect) if name.startswith("schema_")]
    assert scripts == [one.name for one in (schema.FIRST, *schema.MIGRATIONS)]
