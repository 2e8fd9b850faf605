"""The library says all that the gateway takes, one piece or many, in this process or to a server, refused alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suffice.errors import BadRequest
from suffice.gateway.auth import read_token
from suffice.governor import Governor
from suffice.settings import parse_settings
from suffice.store.database.views import read_events
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from tests.governor.loops import ROUTE, STABLE, drive
from tests.house.test_docs import in_thread

METRICS = {"clear": {"type": "rating", "survey": "after"}, "solved": {"type": "boolean"}}
SALT = "of these tests"


def settings_in(folder: Path) -> Any:
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:9"}},
            "routes": {
                ROUTE: {
                    "kind": "rounds",
                    "scorer": "text",
                    "policy": STABLE,
                    "mode": "enforce",
                    "uncertified": True,
                    "audit_share": 0.0,
                    "upstream": "up",
                }
            },
            "store": {"url": f"sqlite:///{folder}/log.db", "flush_ms": 1},
            "metrics": METRICS,
        }
    )


@pytest.fixture(params=["local", "remote"])
def gov(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Governor]:
    monkeypatch.setenv("SUFFICE_SALT", SALT)
    if request.param == "local":
        with Governor.open(settings_in(tmp_path), route=ROUTE) as opened:
            yield opened
        return
    with in_thread(settings_in(tmp_path)) as url, Governor.connect(url, route=ROUTE, timeout_s=20) as connected:
        yield connected


def kept(folder: Path) -> list[Feedback]:
    return [one.event.feedback for one in read_events(folder / "log.db") if isinstance(one.event, FeedbackEvent)]


def test_every_form_is_said_in_either_way_and_stored_alike(gov: Governor, tmp_path: Path) -> None:
    with gov.episode("q") as ep:
        drive(ep, ["a", "a", "a"])
    assert read_token(ep.feedback_token, now_s=0.0, salt=SALT) == ep.id
    assert gov.feedback(
        ep.id,
        source="user",
        rating=4,
        metrics={"clear": 5, "solved": True},
        user="ann",
        propensity=0.5,
        feedback_id="one",
    ).joined
    assert gov.feedback(ep.id, source="behaviour", event="regenerate").joined
    assert asyncio.run(gov.afeedback(ep.id, source="reviewer", gold="")).joined
    one, two, three = kept(tmp_path)
    assert (one.metrics, one.satisfaction, one.propensity) == ((("clear", 5.0), ("solved", True)), 1.0, 0.5)
    assert one.user
    assert "ann" not in one.user
    assert (two.event, two.source, three.gold) == ("regenerate", "behaviour", "")


def test_an_id_that_said_something_else_is_refused(gov: Governor, tmp_path: Path) -> None:
    gov.feedback("ep_1", source="user", rating=5, feedback_id="f")
    assert gov.feedback("ep_1", source="user", rating=5, feedback_id="f").duplicate
    with pytest.raises(BadRequest, match="used it for other feedback") as refused:
        gov.feedback("ep_1", source="user", rating=1, feedback_id="f")
    assert refused.value.status == 409
    assert [one.rating for one in kept(tmp_path)] == [5]


def test_many_are_checked_before_any_is_stored(gov: Governor, tmp_path: Path) -> None:
    rows = [{"feedback_id": f"f{n}", "episode_id": f"ep_{n}", "source": "user", "rating": 1 + n % 5} for n in range(40)]
    taken = gov.feedback_batch(rows)
    assert [(one.duplicate, one.joined) for one in taken] == [(False, False)] * 40
    assert {one.duplicate for one in asyncio.run(gov.afeedback_batch(rows))} == {True}
    with pytest.raises(BadRequest, match=r"row 2, rating: must be a whole number from 1 to 5"):
        gov.feedback_batch([{**rows[0], "feedback_id": "x"}, {**rows[0], "rating": 7}])
    for wrong in ([], rows * 26):
        with pytest.raises(BadRequest, match="1 to 1,000 in one call"):
            gov.feedback_batch(wrong)
    assert len(kept(tmp_path)) == 40
    assert len(gov.feedback_batch([{k: v for k, v in rows[0].items() if k != "feedback_id"}] * 2)) == 2
    assert len(kept(tmp_path)) == 42, "without an id each is a piece of its own"


def test_what_is_not_declared_is_refused_wherever_it_is_known(gov: Governor, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"metrics\.mood: is not declared; declared: clear, solved"):
        gov.feedback("ep_1", source="user", metrics={"mood": 1})
    with pytest.raises(BadRequest, match=r"metrics\.clear: must be a whole number from 1 to 5"):
        gov.feedback("ep_1", source="user", metrics={"clear": 9})
    assert kept(tmp_path) == []
