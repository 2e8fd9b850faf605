"""Feedback in all the forms that people give: checked by what is declared, stored whole, alone or in batches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from suffice.gateway.feedback_form import read_feedback
from suffice.settings import parse_settings
from suffice.store.database.views import read_events
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from suffice.wiring.gateway import build_gateway
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat, post

METRICS: dict[str, dict[str, Any]] = {
    "solved": {"type": "boolean"},
    "effort": {"type": "rating", "direction": "lower", "range": [1, 7]},
    "minutes": {"type": "number", "range": [0, 60]},
    "tone": {"type": "category", "values": ["warm", "cold"]},
    "nps": {"type": "rating", "level": "user", "range": [0, 10]},
    "clear": {"type": "rating", "survey": "after"},
    "slow": {"type": "rating", "survey": "after", "direction": "lower"},
}
DECLARED = parse_settings({"metrics": METRICS}).metrics


def declare(serve: Serve) -> Any:
    """Serve with the metrics declared, and tell which gateway it is."""

    def change(gw: Any) -> None:
        import msgspec

        gw.settings = msgspec.structs.replace(gw.settings, metrics=DECLARED)

    return serve(change=change)


async def say(g: Served, body: Any, path: str = "/v1/feedback", **headers: str) -> Answer:
    return await post(g.session, g.url + path, body, headers)


def feedback(**fields: Any) -> dict[str, Any]:
    return {"feedback_id": "f", "episode_id": "ep", "source": "user", **fields}


def kept(g: Served) -> list[Feedback]:
    return [one.event.feedback for one in read_events(g.database) if isinstance(one.event, FeedbackEvent)]


async def test_declared_metrics_and_surveys_are_stored_with_what_they_say_of_satisfaction(serve: Serve) -> None:
    async with declare(serve) as g:
        given = {"solved": True, "minutes": 12, "tone": "warm", "clear": 5, "slow": 2}
        assert (await say(g, feedback(metrics=given))).json["accepted"] is True
        (one,) = kept(g)
        assert one.metrics == (("clear", 5.0), ("minutes", 12.0), ("slow", 2.0), ("solved", True), ("tone", "warm"))
        assert one.satisfaction == pytest.approx((1.0 + 0.75) / 2), "a low number of a lower-is-better question is good"


@pytest.mark.parametrize(
    ("metrics", "param", "says"),
    [
        ({"mood": 1}, "metrics.mood", "is not declared; declared: clear, effort"),
        ({"solved": 1}, "metrics.solved", "must be true or false"),
        ({"effort": 0}, "metrics.effort", "must be a whole number from 1 to 7"),
        ({"effort": 2.5}, "metrics.effort", "must be a whole number from 1 to 7"),
        ({"effort": True}, "metrics.effort", "must be a whole number from 1 to 7"),
        ({"effort": "2"}, "metrics.effort", "must be a whole number from 1 to 7"),
        ({"minutes": 60.5}, "metrics.minutes", "must be a number from 0 to 60"),
        ({"tone": "grim"}, "metrics.tone", "must be one of warm, cold"),
        ({"tone": ["warm"]}, "metrics.tone", "must be one of warm, cold"),
        ({}, "metrics", "with at least one"),
        ([], "metrics", "must be an object"),
        ({"nps": 9}, "user", "is needed, for metrics.nps speaks of a user"),
    ],
)
def test_a_value_that_its_declaration_does_not_allow_is_refused_by_name(metrics: Any, param: str, says: str) -> None:
    from suffice.errors import BadRequest

    with pytest.raises(BadRequest) as refused:
        read_feedback(feedback(metrics=metrics), DECLARED)
    assert refused.value.param == param
    assert says in str(refused.value)
    assert read_feedback(feedback(metrics={"nps": 9}, user="ann"), DECLARED).metrics == (("nps", 9.0),)


async def test_what_a_user_did_has_a_source_of_its_own_and_says_nothing_else(serve: Serve) -> None:
    async with serve() as g:
        for n, event in enumerate(("regenerate", "abandon")):
            body = {"feedback_id": f"e{n}", "episode_id": "ep", "event": event}
            assert (await say(g, body)).status == 200
        assert [(one.event, one.source) for one in kept(g)] == [
            ("regenerate", "behaviour"),
            ("abandon", "behaviour"),
        ]
        refused = {
            "left": (feedback(event="left", source="behaviour"), "event"),
            "as a reviewer": (feedback(event="abandon", source="reviewer"), "source"),
            "with a rating": (feedback(event="abandon", source="behaviour", rating=1), "event"),
            "behaviour with words": (feedback(source="behaviour", thumbs="up"), "source"),
        }
        for name, (body, param) in refused.items():
            answer = await say(g, body)
            assert (answer.status, answer.json["error"]["param"]) == (400, param), name


@pytest.mark.parametrize("share", [0, -0.1, 1.01, True, "half", float("nan")])
def test_a_share_of_people_asked_is_a_fraction(share: Any) -> None:
    from suffice.errors import BadRequest

    with pytest.raises(BadRequest, match="propensity: must be a number above 0"):
        read_feedback(feedback(rating=1, propensity=share))
    assert read_feedback(feedback(rating=1, propensity=1)).propensity == 1.0


async def test_a_person_is_stored_under_a_keyed_hash_and_no_request_says_how_it_came(serve: Serve) -> None:
    async with serve() as g:
        for n, user in enumerate(("ann@example.com", "bob", "ann@example.com")):
            assert (await say(g, feedback(feedback_id=f"u{n}", rating=4, user=user))).status == 200
        users = [one.user for one in kept(g)]
        assert users[0] == users[2] != users[1]
        assert all(len(user) == 16 and "ann" not in user for user in users)
        assert {one.door for one in kept(g)} == {"open"}
        for field in ("door", "satisfaction", "sender"):
            answer = await say(g, feedback(rating=1, **{field: "x"}))
            assert answer.status == 400
            assert f"{field}: unknown field" in answer.json["error"]["message"]


# ---------------------------------------------------------------- batches


async def test_a_batch_stores_what_can_be_stored_and_names_the_rest(serve: Serve) -> None:
    async with serve(change=lambda gw: setattr(gw, "new_id", lambda: "ep")) as g:
        await g.ask(chat())
        await g.episodes(1)
        rows = [
            feedback(feedback_id="a", rating=5),
            feedback(feedback_id="b", rating=9),
            "no object",
            feedback(feedback_id="a", rating=1),
            feedback(feedback_id="c", episode_id="other", thumbs="up"),
        ]
        answer = await say(g, {"feedback": rows}, "/v1/feedback/batch")
        assert answer.status == 200
        report = answer.json
        assert (report["accepted"], report["duplicates"], report["refused"], report["ignored"]) == (2, 0, 3, 0)
        results = report["results"]
        assert [one["feedback_id"] for one in results] == ["a", "b", None, "a", "c"]
        assert [one["accepted"] for one in results] == [True, False, False, False, True]
        assert [one.get("duplicate") for one in results] == [False, None, None, None, False]
        assert [one.get("joined") for one in results] == [True, None, None, None, False]
        assert results[1]["error"] == {
            "message": "rating: must be a whole number from 1 to 5",
            "param": "rating",
            "code": "bad_request",
        }
        assert results[3]["error"]["code"] == "feedback_id_conflict"
        again = (await say(g, {"feedback": rows}, "/v1/feedback/batch")).json
        assert (again["accepted"], again["duplicates"]) == (2, 2)
        assert len(kept(g)) == 2
        assert g.gateway.metrics.value("suffice_feedback_unjoined_total") == 1


async def test_a_thousand_go_in_one_call_and_not_one_more(serve: Serve) -> None:
    async with serve() as g:
        rows = [feedback(feedback_id=f"f{n}", episode_id=f"ep{n}", rating=1 + n % 5) for n in range(1_000)]
        answer = await say(g, {"feedback": rows}, "/v1/feedback/batch")
        assert (answer.status, answer.json["accepted"], len(answer.json["results"])) == (200, 1_000, 1_000)
        assert len(kept(g)) == 1_000
        more = await say(g, {"feedback": [*rows, rows[0]]}, "/v1/feedback/batch")
        assert (more.status, more.json["error"]["param"]) == (413, "feedback")
        wrong: list[dict[str, Any]] = [
            {"feedback": []},
            {"feedback": {}},
            {"rows": rows[:1]},
            {"feedback": rows[:1], "x": 1},
        ]
        for body in wrong:
            assert (await say(g, body, "/v1/feedback/batch")).status == 400
        assert len(kept(g)) == 1_000


async def test_fifty_senders_of_one_piece_at_once_have_one_effect_in_either_form(serve: Serve) -> None:
    async with serve() as g:
        one = [say(g, feedback(feedback_id="x", rating=2)) for _ in range(25)]
        many = [say(g, {"feedback": [feedback(feedback_id="x", rating=2)]}, "/v1/feedback/batch") for _ in range(25)]
        answers = await asyncio.gather(*one, *many)
        report = [a.json if "duplicate" in a.json else a.json["results"][0] for a in answers]
        assert {a.status for a in answers} == {200}
        assert sorted(one["duplicate"] for one in report) == [False] + [True] * 49
        assert len(kept(g)) == 1


async def test_batches_need_a_key_where_there_are_keys(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "sk-one")
    async with serve(server={"api_keys_env": "KEYS"}) as g:
        body = {"feedback": [feedback(rating=1)]}
        assert (await say(g, body, "/v1/feedback/batch")).status == 401
        assert (await say(g, body, "/v1/feedback/batch", authorization="Bearer sk-one")).status == 200
        assert [one.door for one in kept(g)] == ["key"]


async def test_what_the_settings_declare_is_what_the_gateway_asks_for(serve: Serve, tmp_path: Any) -> None:
    raw = {
        "upstreams": {"up": {"url": "http://127.0.0.1:9"}},
        "store": {"url": f"sqlite:///{tmp_path}/g.db"},
        "metrics": METRICS,
    }
    async with build_gateway(parse_settings(raw)) as app:
        assert app.gateway.settings.metrics == DECLARED


async def test_nothing_of_any_form_is_lost_on_its_way_to_the_log(serve: Serve) -> None:
    everything = feedback(
        correct=False,
        gold="4",
        answer="four",
        rating=2,
        thumbs="down",
        comment="=1+1",
        reason="r",
        propensity=0.25,
        metrics={"solved": False, "clear": 1},
        user="ann",
    )
    async with declare(serve) as g:
        assert (await say(g, everything)).status == 200
        (one,) = kept(g)
        for name in ("correct", "gold", "answer", "rating", "thumbs", "comment", "reason", "propensity"):
            assert getattr(one, name) == everything[name]
        assert one.metrics == (("clear", 1.0), ("solved", False))
        assert one.satisfaction == 0.0
