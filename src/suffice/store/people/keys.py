"""What API keys have made and used, as the log knows it: found by index, however long the log is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from suffice.store.database.views import LogReader, decoded, episodes_of_response, find_event, open_reader
from suffice.store.rows.records import KeyUsage, StoredObject

# ";" is the character behind ":".
_USED: Final = "SELECT seq, body FROM events WHERE kind = 'key_used' AND key >= ? || ':' AND key < ? || ';'"
_SENDER: Final = "SELECT json_extract(body, '$.request.sender') FROM events WHERE kind = 'request' AND key = ?"


def stored_object(path: Path, object_id: str) -> StoredObject | None:
    """Who made an object, and where it is; None: nobody that the log knows. Raises StoreError."""
    with open_reader(path) as connection:
        return find_event(connection, StoredObject, object_id)


def used_on(path: Path, day: str) -> list[KeyUsage]:
    """What keys with a budget have used on a UTC day, in parts. Raises StoreError."""
    with open_reader(path) as connection:
        rows = connection.execute(_USED, (day, day)).fetchall()
    return [decoded(seq, KeyUsage, body) for seq, body in rows]


def senders_of(path: Path, named: Sequence[tuple[str | None, str | None]]) -> list[frozenset[str]]:
    """Who asked for what each pair of an episode id and a response id names; none: the log knows no such answer.

    Raises StoreError.
    """
    with open_reader(path) as connection:
        return [_senders(connection, episode_id, response_id) for episode_id, response_id in named]


def _senders(connection: LogReader, episode_id: str | None, response_id: str | None) -> frozenset[str]:
    episodes = [episode_id]
    if episode_id is None:
        episodes = [*episodes_of_response(connection, response_id, most=100)]
    found = (connection.execute(_SENDER, (episode,)).fetchone() for episode in episodes)
    return frozenset(str(row[0] or "") for row in found if row is not None)
