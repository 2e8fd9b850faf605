"""Whoever changes the log behind its writer's back is found, and the first row that is wrong is named."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.settings import Store
from suffice.store.audit.chain import Head
from suffice.store.audit.verify import verify_chain
from suffice.store.database.decisions import Decisions
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.writer import LogWriter
from tests.drawn import examples
from tests.store.made_chain import (
    SEEN_ALONE,
    change_words,
    copied,
    cut_tail,
    erase_in_silence,
    feedback,
    head_of,
    made,
    published,
    rebuild,
    write,
)

N = 24  # requests; 24 labels, 6 publications, an epoch, an alarm and the beginning: 33 places
PLACES = 33
Tamper = Callable[[SqliteConnection, int], None]


@pytest.fixture(scope="module")
def whole() -> Iterator[SqliteConnection]:
    """A log that nobody has touched; not to be changed."""
    with closing(made(":memory:", N)) as connection:
        yield connection


def test_a_log_that_nobody_touched_is_what_was_written(whole: SqliteConnection) -> None:
    verdict = verify_chain(whole, [head_of(whole)])
    assert verdict.ok
    assert (verdict.n_rows, verdict.n_heads, verdict.n_erased) == (PLACES, 1, 0)
    assert verdict.head == head_of(whole)
    assert verdict.beginning is not None
    assert (verdict.beginning.after_seq, verdict.beginning.n_before) == (0, 0)


@pytest.mark.parametrize("place", [2, 3, 17, PLACES - 1])
@pytest.mark.parametrize("way", SEEN_ALONE)
def test_each_way_of_tampering_is_found_and_its_first_row_is_named(
    whole: SqliteConnection, way: str, place: int
) -> None:
    with closing(copied(whole)) as log:
        SEEN_ALONE[way](log, place)
        bad = verify_chain(log).bad
    assert bad is not None
    if way == "added":
        assert bad.place is None
        assert (bad.kind, bad.what) == ("policy_published", "added: it is in the log but not in the chain")
        return
    assert bad.place == place
    # An event that changed its place with another is not what was written at either place.
    words = ("edited",) if way == "reordered events" else (way.split(maxsplit=1)[0],)
    assert any(word in bad.what for word in words), bad.what


@pytest.mark.parametrize("place", [2, 5, PLACES])
def test_a_cut_tail_fits_in_itself_and_a_head_that_was_exported_names_it(whole: SqliteConnection, place: int) -> None:
    exported = head_of(whole)
    with closing(copied(whole)) as log:
        cut_tail(log, place)
        assert verify_chain(log).ok, "the file alone cannot know"
        bad = verify_chain(log, [exported]).bad
        assert bad is not None
        assert (bad.place, bad.what) == (place, f"cut off: a head at place {PLACES} was exported")
        write(log, [published(900 + i) for i in range(40)])
        assert verify_chain(log).ok
        later = verify_chain(log, [exported]).bad
        assert later is not None, "what was written since hides nothing"
        assert "rebuilt" in later.what


@pytest.mark.parametrize("place", [2, 9, PLACES - 2])
def test_a_chain_that_was_written_anew_fits_in_itself_and_exported_heads_close_in_on_it(place: int) -> None:
    with closing(made(":memory:", 0)) as whole:
        heads = [head_of(whole)]
        for number in range(1, N):
            write(whole, [feedback(number)])
            if number % 5 == 0:
                heads.append(head_of(whole))
        heads.append(head_of(whole))
        with closing(copied(whole)) as log:
            where = min(place, head_of(whole).place)
            rebuild(log, where)
            assert verify_chain(log).ok, "the file alone cannot know"
            bad = verify_chain(log, heads).bad
            agreed = max((one.place for one in heads if one.place < where), default=0)
            assert bad is not None
            assert bad.place == agreed + 1
            assert "rebuilt" in bad.what


def test_another_chain_altogether_is_not_the_one_that_was_exported(whole: SqliteConnection) -> None:
    with closing(made(":memory:", N)) as other:
        bad = verify_chain(other, [head_of(whole)]).bad
    assert bad is not None
    assert bad.place == 1
    assert "begins otherwise" in bad.what


def test_a_beginning_that_is_edited_or_gone_is_named(whole: SqliteConnection) -> None:
    for statement in (
        "UPDATE chain SET note = replace(note, '\"after_seq\":0', '\"after_seq\":9') WHERE place = 1",
        "UPDATE chain SET note = 'nonsense' WHERE place = 1",
        "DELETE FROM chain WHERE place = 1",
        "DELETE FROM chain",
        (
            "INSERT INTO chain SELECT 100, NULL, form, kept, whole, NULL, NULL, NULL, NULL, link, note FROM chain"
            " WHERE place = 1"
        ),
    ):
        with closing(copied(whole)) as log:
            log.execute(statement)
            bad = verify_chain(log).bad
        assert bad is not None, statement
        assert bad.place in {1, PLACES + 1}


def test_words_that_are_changed_or_go_in_silence_are_named(whole: SqliteConnection) -> None:
    result = whole.execute("SELECT place FROM chain WHERE comments IS NOT NULL ORDER BY place")
    with_words = [place for (place,) in result]
    assert len(with_words) > 10
    for tamper, word in ((change_words, "edited: it is not what"), (erase_in_silence, "no erasure in the chain")):
        with closing(copied(whole)) as log:
            tamper(log, with_words[3])
            tamper(log, with_words[7])
            bad = verify_chain(log).bad
        assert bad is not None
        assert bad.place == with_words[3]
        assert word in bad.what


def test_a_field_that_is_there_twice_is_another_body(whole: SqliteConnection) -> None:
    seq = whole.execute("SELECT seq FROM events WHERE kind = 'feedback' AND body LIKE '%comment 3%'").fetchone()[0]
    with closing(copied(whole)) as log:
        paired = 'replace(body, \'"rating":4\', \'"rating":1,"rating":4\')'
        log.execute(f"UPDATE events SET body = {paired} WHERE seq = ?", (seq,))
        assert log.execute("SELECT rating FROM feedback WHERE seq = ?", (seq,)).fetchone() == (1,), "what SQL would see"
        bad = verify_chain(log).bad
    assert bad is not None
    assert bad.seq == seq


FIELDS = {
    "chain": ("seq", "form", "kept", "whole", "answers", "answers_salt", "comments", "comments_salt", "link"),
    "events": ("kind", "key", "episode_id", "route", "at_s", "body"),
}


@given(data=st.data())
@settings(max_examples=examples(150))
def test_any_change_of_any_field_of_any_row_is_found(whole: SqliteConnection, data: st.DataObject) -> None:
    place = data.draw(st.integers(2, PLACES))
    table = data.draw(st.sampled_from(sorted(FIELDS)))
    field = data.draw(st.sampled_from(FIELDS[table]))
    seq = whole.execute("SELECT seq FROM chain WHERE place = ?", (place,)).fetchone()[0]
    before = whole.execute(f"SELECT {field} FROM {table} WHERE seq = ?", (seq,)).fetchone()[0]
    after = data.draw(other_than(before))
    with closing(copied(whole)) as log:
        try:
            log.execute(f"UPDATE {table} SET {field} = ? WHERE seq = ?", (after, seq))
        except sqlite3.IntegrityError:
            return  # a second row of that key or place, or no JSON: the database itself refuses
        verdict = verify_chain(log)
    assert verdict.bad is not None, (table, field, before, after)
    if verdict.bad.place is not None:
        assert verdict.bad.place <= place


def other_than(before: Any) -> st.SearchStrategy[Any]:
    """Another value that the column takes: one character, one bit, one more, or none."""
    if isinstance(before, bytes):
        return st.integers(0, 8 * len(before) - 1).map(
            lambda bit: bytes(one ^ (1 << bit % 8 if n == bit // 8 else 0) for n, one in enumerate(before))
        )
    if isinstance(before, str):
        return (
            st.integers(0, len(before) - 1)
            .map(lambda at: before[:at] + chr(ord(before[at]) ^ 1) + before[at + 1 :])
            .filter(lambda text: text != before)
        )
    if isinstance(before, float):
        return st.floats(0, 1e12).filter(lambda value: value != before)
    if isinstance(before, int):
        return st.integers(1, 200).filter(lambda value: value != before)
    return st.sampled_from([b"x" * 32, "text"])


@given(seed=st.integers(0, 10_000), n=st.integers(1, 3))
@settings(max_examples=examples(60))
def test_several_changes_at_once_hide_nothing(whole: SqliteConnection, seed: int, n: int) -> None:
    rng = random.Random(seed)
    with closing(copied(whole)) as log:
        for _ in range(n):
            place = rng.randrange(2, PLACES - 1)
            try:
                rng.choice(list(SEEN_ALONE.values()))(log, place)
            except (sqlite3.IntegrityError, TypeError):
                continue  # the row that it wants is gone already
        same = (
            log.execute("SELECT * FROM events ORDER BY seq").fetchall()
            == whole.execute("SELECT * FROM events ORDER BY seq").fetchall()
            and log.execute("SELECT * FROM chain ORDER BY place").fetchall()
            == whole.execute("SELECT * FROM chain ORDER BY place").fetchall()
        )
        assert verify_chain(log).ok is same


# ---- writers ---------------------------------------------------------------------------------------------------------


async def test_the_writer_and_decisions_extend_one_chain(open_log: Callable[..., LogWriter], database: Path) -> None:
    log = open_log()
    with Decisions(database, now=lambda: 5.0, monotonic_s=lambda: 0.0) as writer:
        for number in range(1, 6):
            assert writer.write(None, [published(number)]) == [True]
            assert writer.write(None, [published(number)]) == [False], "a row that is there is not chained again"
            assert not (await log.append_durable(feedback(number))).duplicate
            assert (await log.append_durable(feedback(number))).duplicate
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        verdict = verify_chain(connection)
    assert verdict.ok
    assert verdict.n_rows == 11


async def test_what_was_rolled_back_leaves_no_place_in_the_chain(
    open_log: Callable[..., LogWriter], database: Path
) -> None:
    log = open_log()
    await log.append_durable(feedback(1))
    with Decisions(database, now=lambda: 5.0, monotonic_s=lambda: 0.0) as writer:
        assert writer.write(None, [published(1), published(1)], all_new=True) == [True, False]
        with pytest.raises(ZeroDivisionError), writer.transaction() as connection:
            connection.execute("DELETE FROM chain")
            raise ZeroDivisionError
    await log.append_durable(feedback(2))
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        assert verify_chain(connection).ok
        assert head_of(connection).place == 3


WRITER = """
import sys, time
from pathlib import Path
from suffice.store.database.decisions import Decisions
from tests.store.made_chain import published
name, path = sys.argv[1], Path(sys.argv[2])
with Decisions(path, now=time.time, monotonic_s=time.monotonic) as writer:
    for number in range(1, 41):
        assert writer.write(None, [published(number, route=name)]) == [True]
"""


def test_processes_that_write_at_once_make_one_chain(database: Path) -> None:
    LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: 1.0).close()
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, name, str(database)]) for name in ("a", "b", "c")]
    assert [one.wait(60) for one in writers] == [0, 0, 0]
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        verdict = verify_chain(connection)
        turns = connection.execute("SELECT count(DISTINCT owner) FROM events").fetchone()
    assert verdict.ok
    assert verdict.n_rows == 121
    assert turns == (3,)


def test_two_chains_never_begin_alike() -> None:
    heads = list[Head]()
    for _ in range(3):
        with closing(made(":memory:", 0)) as log:
            heads.append(head_of(log))
    assert len({one.begin for one in heads}) == 3
