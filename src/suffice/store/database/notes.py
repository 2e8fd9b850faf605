"""What processes of one log on a server say of now, by name: replaced whole, no history, and part of no decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from suffice.store.database.postgres import NOW_S, PostgresDatabase
from suffice.store.sql import LogReader


class Note(NamedTuple):
    """What a process says of now, by name: replaced whole, no history, and part of no decision.

    A log in a file needs none: what processes of one machine share stands in files beside it.
    """

    body: str
    age_s: float
    at_s: float  # by the server's clock


def write_note(connection: LogReader, name: str, body: str) -> None:
    """Write a note."""
    connection.execute(
        f"INSERT INTO notes (name, body, at_s) VALUES (?, ?, {NOW_S})"  # noqa: S608 - a constant
        " ON CONFLICT (name) DO UPDATE SET body = excluded.body, at_s = excluded.at_s",
        (name, body),
    )


def read_notes(connection: LogReader, prefix: str) -> dict[str, Note]:
    query = f"SELECT name, body, {NOW_S} - at_s, at_s FROM notes WHERE starts_with(name, ?)"  # noqa: S608 - a constant
    return {name: Note(*note) for name, *note in connection.execute(query, (prefix,)).fetchall()}


def is_note_of(database: PostgresDatabase, name: str, at_s: float) -> bool:
    """Return whether a note is the one of this time, or absent if that is 0, in a single round trip."""
    written = f"(SELECT at_s FROM \"{database.schema}\".notes WHERE name = '{name}')"  # noqa: S608 - names of ours
    return database.has_rows(f"SELECT 1 WHERE coalesce({written}, 0) <> {at_s!r}") is False


def exchange_notes(
    database: PostgresDatabase, prefix: str, own: str, answer: Callable[[list[str]], str], *, lasts_s: float
) -> None:
    """Write this process's note `prefix + own` in answer to the others', in one transaction. Raise StoreError.

    lasts_s  older notes count no more, and are dropped
    """
    with database.transaction() as connection:
        notes = read_notes(connection, prefix)
        others = [note.body for name, note in notes.items() if note.age_s <= lasts_s and name != prefix + own]
        write_note(connection, prefix + own, answer(others))
        old = [(name,) for name, note in notes.items() if note.age_s > lasts_s and name != prefix + own]
        connection.executemany("DELETE FROM notes WHERE name = ?", old)
