"""Keys and their limits: what is counted, from when to when, and what a key may do."""

from __future__ import annotations

import pytest

from suffice.errors import ConfigError
from suffice.gateway.auth import (
    MOST_ENTRIES,
    Caller,
    KeyRing,
    Objects,
    object_in,
    references,
)
from suffice.gateway.clients import KeyLimitError, KeyLimits, utc_day
from suffice.settings import Key, Route, parse_settings
from suffice.store.rows.events import KeyUsage, StoredObject
from suffice.wiring.keys import key_ring

NOON_S = 1_764_331_200.0  # 2025-11-28, 12:00 UTC


def caller(**permits: object) -> Caller:
    return Caller(id="c", name="team", permits=Key(key_env="K", **permits))  # type: ignore[arg-type]


def enter(limits: KeyLimits, who: Caller, *, now_s: float = 0.0, wall_s: float = NOON_S, spends: bool = True) -> None:
    limits.enter(who, spends=spends, now_s=now_s, wall_s=wall_s)


def refused(limits: KeyLimits, who: Caller, *, now_s: float = 0.0, wall_s: float = NOON_S) -> tuple[str, int]:
    """Which limit refuses, and for how long."""
    with pytest.raises(KeyLimitError) as caught:
        enter(limits, who, now_s=now_s, wall_s=wall_s)
    return caught.value.limit, caught.value.retry_after_s


def test_no_minute_has_more_requests_than_a_key_may_send() -> None:
    who = caller(requests_per_minute=3)
    limits = KeyLimits([who])
    for now_s in (0.0, 30.0, 59.0):
        enter(limits, who, now_s=now_s)
    assert refused(limits, who, now_s=59.5) == ("requests_per_minute", 1)
    enter(limits, who, now_s=60.0)
    assert refused(limits, who, now_s=60.0) == ("requests_per_minute", 30)
    assert refused(limits, who, now_s=89.9) == ("requests_per_minute", 1), "what was refused does not count"
    enter(limits, who, now_s=90.0)


def test_as_many_requests_are_open_as_a_key_may_have() -> None:
    who = caller(concurrency=2)
    limits = KeyLimits([who])
    enter(limits, who)
    enter(limits, who)
    assert refused(limits, who) == ("concurrency", 1)
    limits.leave(who)
    enter(limits, who)


def test_a_day_of_tokens_ends_at_midnight_and_outlives_a_restart() -> None:
    who = caller(tokens_per_day=100)
    limits = KeyLimits([who])
    limits.spend("c", 60, wall_s=NOON_S)
    enter(limits, who)
    limits.spend("c", 60, wall_s=NOON_S)
    limits.spend("another", 10**9, wall_s=NOON_S)
    assert refused(limits, who) == ("tokens_per_day", 43_200)
    enter(limits, who, spends=False)
    (usage,) = limits.take_unwritten()
    assert (usage, limits.take_unwritten()) == (
        KeyUsage(usage_id="", sender="c", day=utc_day(NOON_S), n_tokens=120),
        [],
    )
    fresh = KeyLimits([who])
    fresh.restore([usage])
    assert refused(fresh, who)[0] == "tokens_per_day"
    enter(fresh, who, wall_s=NOON_S + 43_200)
    stale = KeyLimits([who])
    stale.restore([usage])
    stale.spend("c", 1, wall_s=NOON_S + 86_400)
    enter(stale, who, wall_s=NOON_S + 86_400)


def test_what_was_spent_before_midnight_is_logged_on_its_own_day() -> None:
    limits, midnight_s = KeyLimits([caller(tokens_per_day=100)]), NOON_S + 43_200
    limits.spend("c", 60, wall_s=midnight_s - 1)
    limits.spend("c", 7, wall_s=midnight_s + 1)
    usages = [(one.day, one.n_tokens) for one in limits.take_unwritten()]
    assert usages == [(utc_day(NOON_S), 60), (utc_day(midnight_s), 7)]
    assert limits.take_unwritten() == []


def test_a_key_without_limits_costs_no_memory() -> None:
    limits = KeyLimits([caller()])
    enter(limits, caller())
    limits.leave(caller())
    limits.spend("c", 5, wall_s=NOON_S)
    assert limits.take_unwritten() == []


@pytest.mark.parametrize(
    ("route", "plain", "listed", "open_to_all"),
    [
        (Route(), True, False, True),
        (Route(mode="off"), False, False, True),
        (Route(mode="enforce"), True, False, True),
        (Route(mode="enforce", uncertified=True), False, False, True),
        (Route(mode="observe", uncertified=True), True, False, True),
    ],
)
def test_by_name_a_key_chooses_what_is_safe_or_what_it_lists(
    route: Route, plain: bool, listed: bool, open_to_all: bool
) -> None:
    assert caller().may_use("r", route, by_name=True) is plain
    assert caller().may_use("r", route, by_name=False) is True
    assert caller(routes=("other",)).may_use("r", route, by_name=True) is listed
    assert caller(routes=("other",)).may_use("r", route, by_name=False) is listed
    assert caller(routes=("r",)).may_use("r", route, by_name=True) is True
    assert Caller().may_use("r", route, by_name=True) is open_to_all


def test_several_tenants_are_several_keys_that_may_ask() -> None:
    asks, labels = Caller(id="a"), Caller(id="b", only_feedback=True)
    assert not KeyRing({"1": asks, "2": labels}).has_tenants
    assert not KeyRing({"1": asks, "2": asks}).has_tenants, "two keys of one caller"
    assert not KeyRing({"1": asks, "2": Caller(id="c", permits=Key(key_env="K", routes=()))}).has_tenants
    assert KeyRing({"1": asks, "2": Caller(id="c")}).has_tenants


@pytest.mark.parametrize(
    ("path", "is_object", "object_id"),
    [
        ("/v1/files", True, None),
        ("/files/f-1", True, "f-1"),
        ("/v1/files/f-1/content", True, "f-1"),
        ("/v1/fine_tuning/jobs/j", True, "j"),
        ("/v1/messages/batches/b/results", True, "b"),
        ("/v1/chat/completions/c", True, "c"),
        ("/v1/completions", False, None),
        ("/v1/threads/runs", True, None),
        ("/v1/responses/compact", True, None),
        ("/tokenize", False, None),
        ("/v1/jobs/1", False, None),
    ],
)
def test_a_path_says_which_object_it_is_about(path: str, is_object: bool, object_id: str | None) -> None:
    assert object_in(path) == (is_object, object_id)


def test_words_of_callers_and_models_name_nothing() -> None:
    body = {
        "metadata": {"file_id": "a"},
        "tools": [{"parameters": {"file_id": {"id": "b"}}}],
        "messages": [{"content": [{"type": "tool_use", "input": {"file_id": "c"}}, {"text": '{"file_id": "d"}'}]}],
        "container": {"type": "auto", "file_ids": ["e", 1, None, ""]},
        "file_id": None,
    }
    assert references(body) == {"e": "file_ids"}


async def test_memory_of_objects_is_bounded_and_the_log_speaks_first() -> None:
    def made(object_id: str, sender: str) -> StoredObject:
        return StoredObject(object_id=object_id, sender=sender, upstream="up")

    log = {f"r{n}": made(f"r{n}", "first") for n in range(50)}
    objects = Objects(log.get)
    assert objects.note(made("r0", "second"))
    assert not objects.note(made("r0", "third"))
    result = await objects.of("r0")
    assert result is not None
    assert result.sender == "first"
    for n in range(MOST_ENTRIES + 10):
        objects.note(made(f"x{n}", "s"))
    for n in range(50):
        await objects.of(f"r{n}")
    assert len(objects._recent) == MOST_ENTRIES
    assert await objects.of("nobody") is None


GOOD = {"upstreams": {"up": {"url": "http://127.0.0.1:1"}}, "routes": {"r": {"upstream": "up"}}}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"key_env": ""}, "keys.team.key_env: must name the environment variable"),
        ({"key_env": "K", "routes": ["x"]}, "keys.team.routes: unknown route 'x'; known: r"),
        ({"key_env": "K", "concurrency": 0}, "keys.team.concurrency: got 0; at least 1"),
        ({"key_env": "K", "tokens_per_day": -1}, "keys.team.tokens_per_day: got -1; at least 1"),
        ({"key_env": "K", "requests_per_minute": 10**7}, "requests_per_minute: got 10000000; from 1 to 1000000"),
        ({}, "key_env must be given"),
    ],
)
def test_a_key_that_cannot_be_is_refused_with_its_place(key: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings({**GOOD, "keys": {"team": key}})
    assert message in str(refused.value)
    with pytest.raises(ConfigError, match="keys: got 'a b'"):
        parse_settings({**GOOD, "keys": {"a b": {"key_env": "K"}}})


def test_a_key_stands_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM", "one,two")
    monkeypatch.setenv("OTHER", "two")
    settings = parse_settings({**GOOD, "keys": {"team": {"key_env": "TEAM"}}})
    ring = key_ring(settings, "salt")
    assert [one.name for one in ring.callers] == ["team"]
    assert ring.asks_for_keys
    with pytest.raises(ConfigError, match=r"a key in OTHER is also a key of keys\.team\.key_env"):
        key_ring(parse_settings({**GOOD, "keys": {"team": {"key_env": "TEAM"}, "other": {"key_env": "OTHER"}}}), "salt")
    monkeypatch.delenv("TEAM")
    with pytest.raises(ConfigError, match=r"keys\.team\.key_env: the environment has no keys in TEAM"):
        key_ring(settings, "salt")
