"""What was erased is in no byte of the log's files; what was counted still counts, and the chain still holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.runs import measure_run
from suffice.learn.dataset import fate
from suffice.settings import Store
from suffice.store.audit.personal import PARTS, Part, without
from suffice.store.audit.verify import verify_chain
from suffice.store.database.decisions import Decisions
from suffice.store.database.erasing import (
    BATCH_ROWS,
    ErasureOrder,
    erase_words,
    erased_until,
    exports_since,
    purge,
    select_expired_rows,
    select_word_rows,
)
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import EpisodeWithLabels, StoredLabel, read_episodes
from suffice.store.database.writer import LogWriter
from suffice.store.people.audit_view import entries
from suffice.store.rows.events import EVENTS, Export, FeedbackEvent, decode_as, to_row
from suffice.types import Episode, Feedback, Outcome, Query, Usage
from tests.drawn import examples
from tests.records import plain_step
from tests.store.made_chain import copied, cut_tail, head_of, made, named_request

CANARY = "canary-7f3a"
Open = Callable[..., LogWriter]
Query_ = Callable[..., list[tuple[Any, ...]]]


def ended(name: str, *, answer: str, would: str | None = None) -> Outcome:
    steps = tuple(
        plain_step(i, tokens=10 * i, answer=text, confidence=0.5, probe_tokens=3, reason=f"step {i}")
        for i, text in enumerate((would or answer, None, answer), 1)
    )
    return Outcome(
        episode_id=name,
        end_reason="done",
        status=200,
        answer=answer,
        response_id=f"r-{name}",
        steps=steps,
        usage=Usage(prompt_tokens=7, completion_tokens=30),
        would_answer=would,
        stop_step=1 if would else None,
    )


def fill(log: LogWriter, names: list[str]) -> None:
    """Runs whose every word is a canary, with labels that name them by either id."""
    for name in names:
        request = named_request(name, unit=f"unit-{name[0]}")
        log.append(replace(request, query=Query(metadata=(("customer", f"{CANARY}-{name}"),))))
        log.append(ended(name, answer=f"{CANARY}-{name} 408", would=f"{CANARY}-{name} 407"))
        log.append(
            FeedbackEvent(
                Feedback(
                    feedback_id=f"f-{name}",
                    episode_id=name,
                    gold=f"{CANARY}-{name} gold",
                    comment=f"{CANARY}-{name} says",
                    rating=4,
                    source="user",
                    reason=f"{CANARY}-{name} thinks so",
                )
            )
        )
        too = Feedback(feedback_id=f"g-{name}", response_id=f"r-{name}", comment=f"{CANARY}-{name} too")
        log.append(FeedbackEvent(too))
    assert log.drain()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def order(parts: tuple[Part, ...] = PARTS, what: str = "episode a1") -> ErasureOrder:
    return ErasureOrder(erasure_id="er_1", what=what, parts=parts, author="ann", reason="she asked for it")


@pytest.fixture
def writer(database: Path) -> Iterator[Decisions]:
    with Decisions(database, now=lambda: 100.0, monotonic_s=lambda: 0.0) as opened:
        yield opened


def test_an_episode_is_gone_from_every_byte_and_all_else_is_as_it_was(
    open_log: Open, database: Path, writer: Decisions, query: Query_
) -> None:
    log = open_log()
    fill(log, [f"a{i}" for i in range(40)])
    before = query("SELECT route, correct, rating, joined FROM feedback ORDER BY seq")
    assert any(f"{CANARY}-a7".encode() in content for content in bytes_of(database.parent).values())
    with closing(SqliteConnection(database)) as connection:
        rows = select_word_rows(connection, "a7")
    assert len(rows) == 4
    assert erase_words(writer, order(), rows) == 4
    assert purge(database)
    log.append(named_request("later"))
    assert log.drain(), "the gateway goes on"
    assert not [name for name, content in bytes_of(database.parent).items() if f"{CANARY}-a7".encode() in content]
    assert query("SELECT route, correct, rating, joined FROM feedback ORDER BY seq") == before
    assert query("SELECT prompt_tokens, completion_tokens FROM outcomes WHERE episode_id = 'a7'") == [(7, 30)]
    assert query("SELECT count(*) FROM feedback WHERE comment LIKE '%canary%'") == [(78,)], "nobody else's words"
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        verdict = verify_chain(connection)
        assert verdict.ok
        assert verdict.n_erased == 3, "answers and comments of one label, comments of the other"
        exported = "".join(entry.body for entry in entries(connection))
    assert f"{CANARY}-a7" not in exported
    assert '"she asked for it"' in exported


def test_answers_that_were_equal_stay_equal_so_disagreement_is_still_known(
    open_log: Open, database: Path, writer: Decisions
) -> None:
    fill(open_log(), ["a1"])
    with closing(SqliteConnection(database)) as connection:
        erase_words(writer, order(("answers",)), select_word_rows(connection, "a1"))
        result = next(iter(read_episodes(connection)))
    outcome = result.episode.outcome
    assert outcome.answer is not None
    assert outcome.would_answer not in {None, outcome.answer}
    assert [step.answer for step in outcome.steps] == [outcome.would_answer, None, outcome.answer]
    assert [label.feedback.gold for label in result.labels] == [None, None], "what is right goes with what was answered"
    assert [label.feedback.comment for label in result.labels] == [f"{CANARY}-a1 says", f"{CANARY}-a1 too"]


def test_erasing_again_does_nothing_and_part_after_part_holds(
    open_log: Open, database: Path, writer: Decisions
) -> None:
    fill(open_log(), ["a1", "b1"])
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        parts: list[tuple[Part, int]] = [
            ("comments", 2),
            ("comments", 0),
            ("answers", 2),
            ("metadata", 1),
            ("steps", 1),
            ("steps", 0),
        ]
        for number, (part, n_rows) in enumerate(parts):
            one = replace(order((part,)), erasure_id=f"er {number}")
            assert (part, erase_words(writer, one, select_word_rows(connection, "a1"))) == (part, n_rows)
            assert verify_chain(connection).ok
        assert verify_chain(connection).n_erased == 3


def test_a_label_that_is_sent_again_brings_no_words_back(open_log: Open, database: Path, writer: Decisions) -> None:
    log = open_log()
    fill(log, ["a1"])
    with closing(SqliteConnection(database)) as connection:
        erase_words(writer, order(), select_word_rows(connection, "a1"))
    fill(log, ["a1"])
    assert purge(database)
    assert not [name for name, content in bytes_of(database.parent).items() if CANARY.encode() in content]


def test_what_is_redacted_is_never_written_by_anybody(database: Path) -> None:
    words: tuple[Part, ...] = ("answers", "comments", "metadata")
    log = LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: 1.0, redact=words)
    try:
        fill(log, ["a1"])
        with Decisions(database, now=lambda: 1.0, monotonic_s=lambda: 0.0, redact=words) as writer:
            writer.write(None, [FeedbackEvent(Feedback(feedback_id="h", comment=f"{CANARY} by another way"))])
        assert not [name for name, content in bytes_of(database.parent).items() if CANARY.encode() in content]
    finally:
        log.close()
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        assert verify_chain(connection).ok
        assert connection.execute("SELECT count(*), sum(rating) FROM feedback").fetchone() == (3, 4)


def test_a_reader_of_an_older_state_holds_the_words_back_and_it_is_said(
    open_log: Open, database: Path, writer: Decisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suffice.store.database.sqlite.PURGE_BUSY_S", 0.3)
    fill(open_log(), ["a1"])
    with (
        closing(SqliteConnection(database, isolation_level=None)) as reader,
        closing(SqliteConnection(database)) as finder,
    ):
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        erase_words(writer, order(), select_word_rows(finder, "a1"))
        assert not purge(database)
        reader.execute("ROLLBACK")
    assert purge(database)
    assert not [name for name, content in bytes_of(database.parent).items() if CANARY.encode() in content]


def test_age_is_read_in_order_and_done_places_are_remembered(open_log: Open, database: Path, writer: Decisions) -> None:
    fill(open_log(), [f"a{i}" for i in range(5)])  # a clock that ticks with each row
    with closing(SqliteConnection(database)) as connection:
        last, result = select_expired_rows(connection, 10.0, after_seq=0, until_seq=1_000)
        assert result == list(range(1, last + 1))
        assert 5 < len(result) < 20
        assert select_expired_rows(connection, 10.0, after_seq=last, until_seq=1_000) == (last, [])
        assert erased_until(connection, "old") == 0
        erase_words(writer, order(("comments",), "old"), result, until_seq=last)
        assert erased_until(connection, "old") == last


def test_more_rows_than_one_transaction_takes_are_all_erased_and_said_to_be_only_at_the_end(
    open_log: Open, database: Path, writer: Decisions
) -> None:
    log = open_log()
    for i in range(BATCH_ROWS + 5):
        log.append(FeedbackEvent(Feedback(feedback_id=f"f{i}", comment=f"{CANARY} {i}")))
    assert log.drain(30)
    rows = range(1, BATCH_ROWS + 6)
    assert erase_words(writer, order(("comments",), "old"), rows, until_seq=BATCH_ROWS + 5) == BATCH_ROWS + 5
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        report = connection.execute(
            "SELECT json_extract(body, '$.erasure.until_seq') FROM events WHERE kind = 'erased'"
        )
        assert [one for (one,) in report.fetchall()] == [0, BATCH_ROWS + 5]
        verdict = verify_chain(connection)
    assert verdict.ok
    assert verdict.n_erased == BATCH_ROWS + 5


@pytest.mark.parametrize("field", ["rating", "source", "correct"])
def test_an_erasure_is_no_licence_to_change_the_rest_of_a_row(
    open_log: Open, database: Path, writer: Decisions, field: str
) -> None:
    fill(open_log(), ["a1", "b1"])
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        erase_words(writer, order(), select_word_rows(connection, "a1"))
        assert verify_chain(connection).ok
        connection.execute(f"UPDATE events SET body = json_set(body, '$.feedback.{field}', 1) WHERE key = '/f-a1'")
        bad = verify_chain(connection).bad
    assert bad is not None
    assert bad.kind == "feedback"
    assert "edited" in bad.what


async def test_what_was_erased_may_be_sent_again_and_is_still_known(open_log: Open, writer: Decisions) -> None:
    log = open_log()
    given = Feedback(feedback_id="f", episode_id="a1", source="user", comment=CANARY, rating=5)
    await log.append_durable(FeedbackEvent(given))
    with closing(SqliteConnection(str(log.path), isolation_level=None)) as connection:
        erase_words(writer, order(), select_word_rows(connection, "a1"))
    again = await log.append_durable(FeedbackEvent(given))
    other = await log.append_durable(FeedbackEvent(replace(given, rating=1)))
    assert (again.duplicate, again.conflict, other.conflict) == (True, False, True)


def test_an_erasure_covers_only_whom_it_names(open_log: Open, database: Path, writer: Decisions) -> None:
    fill(open_log(), ["a1", "b1"])
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        erase_words(writer, order(), select_word_rows(connection, "a1"))
        seq = connection.execute("SELECT seq FROM events WHERE key = '/f-b1'").fetchone()[0]
        connection.execute("UPDATE chain SET comments_salt = NULL WHERE seq = ?", (seq,))
        connection.execute(
            "UPDATE events SET body = json_set(body, '$.feedback.comment', null, '$.feedback.reason', null)"
            " WHERE seq = ?",
            (seq,),
        )
        bad = verify_chain(connection).bad
    assert bad is not None
    assert bad.seq == seq
    assert "no erasure in the chain explains it" in bad.what


def test_where_the_erasure_itself_was_cut_off_a_head_says_so(open_log: Open, database: Path, writer: Decisions) -> None:
    fill(open_log(), ["a1", "b1"])
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        erase_words(writer, order(), select_word_rows(connection, "a1"))
        exported = head_of(connection)
        cut_tail(connection, exported.place)
        alone, bad = verify_chain(connection).bad, verify_chain(connection, [exported]).bad
    assert alone is not None
    assert "no erasure in the chain explains it" in alone.what
    assert bad is not None
    assert (bad.place, bad.what) == (exported.place, f"cut off: a head at place {exported.place} was exported")


def test_the_digest_that_stays_cannot_be_tried_against_a_guess(whole_label: tuple[bytes, bytes, str]) -> None:
    from hashlib import sha256

    digest, salt, comment = whole_label
    guess = f'[["feedback","comment","{comment}"]]'.encode()
    assert sha256(salt + guess).digest() == digest, "with the salt a guess is confirmed"
    assert sha256(guess).digest() != digest, "and the salt is gone when the words are"
    assert len(salt) == 16


@pytest.fixture
def whole_label(open_log: Open, database: Path) -> tuple[bytes, bytes, str]:
    log = open_log()
    log.append(FeedbackEvent(Feedback(feedback_id="f", comment="yes")))
    assert log.drain()
    with closing(SqliteConnection(database)) as connection:
        digest, salt = connection.execute("SELECT comments, comments_salt FROM chain WHERE seq = 1").fetchone()
    return digest, salt, "yes"


@given(chosen=st.sets(st.integers(0, 11), max_size=12), parts=st.sets(st.sampled_from(PARTS), min_size=1))
@settings(max_examples=examples(25))
def test_whatever_is_erased_the_chain_holds(
    tmp_path_factory: pytest.TempPathFactory, chosen: set[int], parts: set[Part]
) -> None:
    database = tmp_path_factory.mktemp("erased") / "log.db"
    with closing(made(database, 12)) as connection:
        before = connection.execute("SELECT count(*), sum(length(kind)), sum(at_s) FROM events").fetchone()
        with Decisions(database, now=lambda: 9.0, monotonic_s=lambda: 0.0) as writer:
            for name in chosen:
                done = replace(order(tuple(sorted(parts))), erasure_id=f"er {name}")
                erase_words(writer, done, select_word_rows(connection, f"e{name}"))
        assert verify_chain(connection).ok
        with closing(copied(connection)) as log:
            assert verify_chain(log).ok
        after = connection.execute("SELECT count(*), sum(length(kind)), sum(at_s) FROM events WHERE kind <> 'erased'")
        assert after.fetchone() == before


def test_exports_from_before_are_named(open_log: Open, database: Path) -> None:
    log = open_log()
    log.append(Export(export_id="x", author="ann", reason="", what="audit log", where="old.csv", n_rows=3))
    assert log.drain()
    with closing(SqliteConnection(database)) as connection:
        assert [where for _, where in exports_since(connection, 0)] == ["old.csv"]
        assert exports_since(connection, 1) == []


@given(
    answers=st.lists(st.none() | st.sampled_from(["4", "5", "4.0", "a"]), min_size=2, max_size=6),
    stop=st.integers(0, 5),
    correct=st.none() | st.booleans(),
)
@settings(max_examples=examples(60))
def test_evidence_without_references_is_what_it_was(answers: list[str | None], stop: int, correct: bool | None) -> None:
    at = min(stop, len(answers) - 1)
    steps = tuple(
        plain_step(i, answer=text, answer_source="probe" if text else None, probe_tokens=1)
        for i, text in enumerate(answers, 1)
    )
    outcome = Outcome(
        episode_id="e",
        end_reason="done",
        status=200,
        answer=answers[-1],
        response_id=None,
        steps=steps,
        usage=Usage(prompt_tokens=7, completion_tokens=30),
        would_answer=answers[at],
        stop_step=at + 1,
    )
    label = Feedback(feedback_id="f", episode_id="e", correct=correct)

    def measured(one: Outcome) -> Any:
        item = EpisodeWithLabels(
            seq=1,
            episode=Episode(request=named_request("e"), outcome=one),
            labels=(StoredLabel(seq=2, feedback=label),),
        )
        return measure_run(item, lambda answer, gold: answer == gold), fate(item.episode.request, one)

    bare = decode_as(EVENTS["outcome"], without("outcome", to_row(outcome).body, ("answers",)))
    assert isinstance(bare, Outcome)
    assert measured(bare) == measured(outcome)
    gone = decode_as(EVENTS["outcome"], without("outcome", to_row(outcome).body, ("answers", "steps")))
    assert isinstance(gone, Outcome)
    assert measured(gone)[1] == "broken", "without its steps a run is no evidence, neither way"
