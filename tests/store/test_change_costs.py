"""The page of changes finds decisions among any number of labels without reading the labels."""

from __future__ import annotations

import pytest

from suffice.settings import Store
from suffice.store.audit.appender import Appender
from suffice.store.database.location import database_at, log_location
from suffice.store.people.audit_view import rows_before
from suffice.store.rows.events import Event, FeedbackEvent, key_of, to_row
from suffice.types import Feedback
from tests.store.made_chain import published


@pytest.mark.sqlite_only  # whose steps can be counted
def test_the_latest_decisions_are_found_without_reading_the_labels_around_them(store: Store) -> None:
    database, steps = database_at(log_location(store)), dict[int, int]()
    claim, owner = database.enter(now_s=1.0)
    for n_labels in (10, 2_000):
        with database.transaction() as connection:
            labels = [FeedbackEvent(Feedback(feedback_id=f"f{n_labels}-{i}")) for i in range(n_labels)]
            events: list[Event] = [published(n_labels), *labels]
            rows = [(to_row(event), 1.0) for event in events]
            Appender(connection, owner=owner).add_all(rows)
        with database.reader() as log:
            counted = list[int]()
            log.set_progress_handler(lambda into=counted: into.append(1), 1)  # type: ignore[attr-defined]
            latest = rows_before(log, 2**62, 10, kinds={"policy_published", "epoch_began"}, chained=True)
            log.set_progress_handler(None, 0)  # type: ignore[attr-defined]
        steps[n_labels] = len(counted)
        assert latest[0][5] == key_of(published(n_labels))
    assert len(latest) == 2
    assert steps[2_000] - steps[10] < 200, "a tenth of a step for each label"
    with database.reader() as log:
        assert [row[4] for row in rows_before(log, 2**62, 3, kinds={"feedback"}, chained=True)] == ["feedback"] * 3
    claim.release()
