"""What processes of one log on a server say of now, by name: replaced whole, no history, and part of no decision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from suffice.store.sql import LogReader


class Note(NamedTuple):
    body: str
    age_s: float
    at_s: float  # by the server's clock


@dataclass(frozen=True, slots=True)
class Notes:
    transaction: Callable[[], AbstractContextManager[LogReader]]
    has_rows: Callable[[str], bool | None]  # of a query, in one round trip; None: not known
    table: str

    def read(self, connection: LogReader, prefix: str) -> dict[str, Note]:
        return {name: Note(*note) for name, *note in connection.execute("read_notes", (prefix,))}

    def write(self, connection: LogReader, name: str, body: str) -> None:
        connection.execute("write_note", (name, body))

    def is_unchanged(self, name: str, at_s: float) -> bool:
        """Return whether a note is the one of this time, or absent if that is 0."""
        written = f"(SELECT at_s FROM {self.table} WHERE name = '{name}')"  # noqa: S608 - names of ours
        return self.has_rows(f"SELECT 1 WHERE coalesce({written}, 0) <> {at_s!r}") is False

    def exchange(self, prefix: str, own: str, answer: Callable[[list[str]], str], *, lasts_s: float) -> None:
        """Write this process's note `prefix + own` in answer to the others', in one transaction. Raise StoreError.

        lasts_s  older notes count no more, and are dropped
        """
        with self.transaction() as connection:
            notes = self.read(connection, prefix)
            others = [note.body for name, note in notes.items() if note.age_s <= lasts_s and name != prefix + own]
            self.write(connection, prefix + own, answer(others))
            old = [(name,) for name, note in notes.items() if note.age_s > lasts_s and name != prefix + own]
            connection.executemany("DELETE FROM notes WHERE name = ?", old)
