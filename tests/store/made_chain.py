"""A log whose chain has rows of many kinds, and people's words in some of them; and ways to tamper with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path

from suffice.store.audit.appender import Appender, begin_chain
from suffice.store.audit.chain import Head, head
from suffice.store.database import schema
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.rows.events import Event, FeedbackEvent, Row, to_row
from suffice.types import Alarm, Epoch, Feedback, Publication, Request
from tests.records import plain_request

AUTHOR = "worker"


def published(number: int, *, route: str = "math", level: int | None = None) -> Publication:
    return Publication(
        route=route,
        number=number,
        epoch=1,
        at=number,
        version=f"c-{number}",
        fit="f-1",
        level=level or number % 41,
        n_levels=41,
        certified=True,
        share=0.1,
        reason="because",
        author=AUTHOR,
    )


def named_request(name: str, **more: str) -> Request:
    return plain_request(name, route="math", **more)


def feedback(number: int) -> FeedbackEvent:
    return FeedbackEvent(
        Feedback(
            feedback_id=f"f{number}",
            episode_id=f"e{number}",
            correct=number % 2 == 0,
            rating=1 + number % 5,
            gold=f"gold {number}" if number % 3 else None,
            comment=f"comment {number}" if number % 4 else None,
            source="user",
        )
    )


def story(n: int) -> Iterable[Event]:
    """Requests, labels, publications, epochs and alarms, mixed."""
    yield Epoch(route="math", number=1, at=0, since_seq=0, reason="cold start", author=AUTHOR)
    for i in range(n):
        yield named_request(f"e{i}")
        yield feedback(i)
        if i % 4 == 0:
            yield published(i // 4 + 1)
    yield Alarm(route="math", epoch=1, at=n, cause="change", reason="another model answers")


def write(connection: SqliteConnection, events: Iterable[Event], *, at_s: float = 1.0) -> None:
    connection.execute("BEGIN IMMEDIATE")
    appender = Appender(connection, owner=1)
    for number, event in enumerate(events):
        appender.add(to_row(event), at_s + number)
    connection.execute("COMMIT")


def made(path: Path | str, n: int) -> SqliteConnection:
    """A log of that many labelled requests; the caller closes it."""
    connection = SqliteConnection(path, isolation_level=None)
    schema.create(connection, str(path))
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        begin_chain(connection, 1.0)
    write(connection, story(n))
    return connection


def copied(source: SqliteConnection) -> SqliteConnection:
    """The same log in memory, to be tampered with; the caller closes it."""
    target = SqliteConnection(":memory:", isolation_level=None)
    source.backup(target)
    return target


def head_of(connection: SqliteConnection) -> Head:
    result = head(connection)
    assert result is not None
    return result


def edit(log: SqliteConnection, place: int) -> None:
    """Another author, level or verdict in the body."""
    log.execute(
        "UPDATE events SET body = replace(replace(replace(body, 'because', 'no reason'), 'rating\":', 'rating\":1'),"
        " 'at\":', 'at\":1') WHERE seq = (SELECT seq FROM chain WHERE place = ?)",
        (place,),
    )


def edit_when(log: SqliteConnection, place: int) -> None:
    log.execute("UPDATE events SET at_s = at_s + 1 WHERE seq = (SELECT seq FROM chain WHERE place = ?)", (place,))


def edit_digest(log: SqliteConnection, place: int) -> None:
    log.execute("UPDATE chain SET kept = randomblob(32) WHERE place = ?", (place,))


def remove(log: SqliteConnection, place: int) -> None:
    """Row and link, as if it had never been."""
    log.execute("DELETE FROM events WHERE seq = (SELECT seq FROM chain WHERE place = ?)", (place,))
    log.execute("DELETE FROM chain WHERE place = ?", (place,))


def remove_event(log: SqliteConnection, place: int) -> None:
    log.execute("DELETE FROM events WHERE seq = (SELECT seq FROM chain WHERE place = ?)", (place,))


def remove_and_close_up(log: SqliteConnection, place: int) -> None:
    """The places behind it move up, so that no number is missing."""
    remove(log, place)
    later = [one for (one,) in log.execute("SELECT place FROM chain WHERE place > ? ORDER BY place", (place,))]
    for one in later:
        log.execute("UPDATE chain SET place = ? WHERE place = ?", (one - 1, one))


def reorder_places(log: SqliteConnection, place: int) -> None:
    """A row changes its place with the next one."""
    for before, after in ((place, -1), (place + 1, place), (-1, place + 1)):
        log.execute("UPDATE chain SET place = ? WHERE place = ?", (after, before))


def reorder_events(log: SqliteConnection, place: int) -> None:
    """The events of two rows change their places in the log."""
    result = "SELECT seq FROM chain WHERE place = ?"
    first, second = (log.execute(result, (one,)).fetchone()[0] for one in (place, place + 1))
    for before, after in ((first, -1), (second, first), (-1, second)):
        log.execute("UPDATE events SET seq = ? WHERE seq = ?", (after, before))


def add_event(log: SqliteConnection, place: int) -> None:
    """A decision that nobody made, behind the writer's back."""
    row = to_row(published(1_000 + place))
    log.execute(
        "INSERT INTO events (kind, key, route, at_s, owner, body) VALUES (?, ?, ?, 1, 1, ?)",
        (row.kind, row.key, row.route, row.body),
    )


def erase_in_silence(log: SqliteConnection, place: int) -> None:
    """Words go and their salts too, and no erasure says so."""
    log.execute("UPDATE chain SET comments_salt = NULL, answers_salt = NULL WHERE place = ?", (place,))
    log.execute(
        "UPDATE events SET body = json_set(body, '$.feedback.comment', null, '$.feedback.gold', null)"
        " WHERE seq = (SELECT seq FROM chain WHERE place = ?)",
        (place,),
    )


def change_words(log: SqliteConnection, place: int) -> None:
    log.execute(
        "UPDATE events SET body = replace(body, 'comment ', 'praise ')"
        " WHERE seq = (SELECT seq FROM chain WHERE place = ?)",
        (place,),
    )


def cut_tail(log: SqliteConnection, place: int) -> None:
    """Everything from there on is gone: the chain fits in itself."""
    log.execute("DELETE FROM events WHERE seq >= (SELECT seq FROM chain WHERE place = ?)", (place,))
    log.execute("DELETE FROM chain WHERE place >= ?", (place,))


def rebuild(log: SqliteConnection, place: int) -> None:
    """The event at a place is another one, and from there on the chain is written anew: it fits in itself."""
    edit(log, place)
    rows = log.execute(
        "SELECT e.seq, e.kind, e.key, e.episode_id, e.route, e.at_s, e.body FROM chain c JOIN events e ON e.seq = c.seq"
        " WHERE c.place >= ? ORDER BY c.place",
        (place,),
    ).fetchall()
    log.execute("DELETE FROM chain WHERE place >= ?", (place,))
    log.execute("BEGIN IMMEDIATE")
    appender = Appender(log, owner=1)
    for seq, kind, key, episode_id, route, at_s, body in rows:
        log.execute("DELETE FROM events WHERE seq = ?", (seq,))
        log.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'events'", (seq - 1,))
        appender.add(Row(kind, key, episode_id, route, body), at_s)
    log.execute("COMMIT")


SEEN_ALONE: Mapping[str, Callable[[SqliteConnection, int], None]] = {
    "edited": edit,
    "edited time": edit_when,
    "edited digest": edit_digest,
    "removed": remove,
    "removed event": remove_event,
    "removed and closed up": remove_and_close_up,
    "reordered places": reorder_places,
    "reordered events": reorder_events,
    "added": add_event,
}
SEEN_BY_HEADS: Mapping[str, Callable[[SqliteConnection, int], None]] = {"cut tail": cut_tail, "rebuilt": rebuild}


def open_made(path: Path, n: int) -> None:
    """Make a log in a file and close it."""
    with closing(made(path, n)):
        pass
