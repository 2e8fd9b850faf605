"""Reads across tenants: every page, API path, export and action, tried by people of one tenant on the other's runs."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from suffice.console.app import ConsoleApp
from suffice.console.auth import Role
from suffice.console.context import ConsoleEndpoint
from suffice.gateway.auth import Caller
from suffice.review.items import ReviewItem, VerdictForm, day_number
from suffice.settings import Key, Settings, Store
from suffice.store.database.location import log_location
from suffice.store.database.views import read_kinds
from suffice.store.database.writer import LogWriter
from suffice.store.people.deciding import lease_next, submit_verdict
from suffice.store.rows.events import Event, FeedbackEvent, QuestionText
from suffice.types import Feedback, Query
from suffice.wiring.worker import open_decisions, open_worker
from tests.console.visitor import Got, Visitor, people_of, settings_in, site
from tests.control.made import run

TENANTS = ("acme", "other", "")  # "": of no tenant, which is the operator's own
N_RUNS = 6  # of each tenant


def canary(tenant: str) -> str:
    return f"canary-of-{tenant or 'nobody'}"


def runs_of(tenant: str) -> Iterator[Event]:
    """Runs of a tenant, with its canary wherever text can stand."""
    rng, text, now_s = random.Random(1), canary(tenant), time.time()
    for number in range(N_RUNS):
        request, outcome = run(number, rng)
        name = f"ep_{tenant or 'none'}_{number}"
        yield replace(
            request,
            episode_id=name,
            route="math",
            tenant=tenant,
            sender=f"sender-{text}",
            model=text,
            query=Query(query_class=text, metadata=(("task", text),)),
            audit=True,
            propensity=0.5,
            kind="rounds" if number % 2 else "samples",
        )
        yield replace(
            outcome,
            episode_id=name,
            answer=text,
            would_answer=f"{text}!",
            stop_step=3,
            vote=((text, 3),),
            decision=text,
            response_id=f"resp-{text}-{number}",
            steps=tuple(replace(step, answer=text, reason=text) for step in outcome.steps),
        )
        yield QuestionText(episode_id=name, route="math", text=f"question {text}", expires_at_s=now_s + 9_999)
        yield FeedbackEvent(
            Feedback(feedback_id=f"f-{name}", episode_id=name, gold=text, comment=text, source="user", sender=text)
        )


def item_of(tenant: str, number: int) -> ReviewItem:
    text, now_s = canary(tenant), time.time()
    return ReviewItem(
        episode_id=f"ep_{tenant or 'none'}_{number}",
        route="math",
        why="disagreement",
        because=text,
        shows="both",
        full_answer=text,
        early_answer=f"{text}!",
        priority=float(number),
        day=day_number(now_s),
        n_reviewers=1,
        requested_at_s=now_s,
        author="worker",
        query_class=text,
        tenant=tenant,
    )


@dataclass
class Shared:
    """One console on the runs of several tenants."""

    app: ConsoleApp
    settings: Settings
    secrets: dict[str, str]

    def visitor(self, name: str) -> Visitor:
        made = Visitor(self.app)
        assert made.login(self.secrets[name]).status == 303
        return made

    def bearer(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secrets[name]}"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    settings = settings_in(tmp_path_factory.mktemp("tenants"))
    log = LogWriter(Store(url=settings.store.url), now=time.time)
    for tenant in TENANTS:
        for event in runs_of(tenant):
            assert log.append(event)
    assert log.drain(20)
    log.close()
    with open_decisions(settings) as writer:
        for tenant in TENANTS:
            assert writer.write_new(*(item_of(tenant, number) for number in range(3)))
            lease = lease_next(writer, f"reviewer-{canary(tenant)}", now_s=time.time(), tenants=(tenant,))
            assert lease is not None
            form = VerdictForm(
                item=lease.item, reviewer=lease.reviewer, word="both", corrected=None, reason=canary(tenant)
            )
            assert not isinstance(submit_verdict(writer, form, now_s=time.time()), str)
    with open_worker(settings, learning=False) as worker:
        assert worker.once("rollup")
    people, secrets = people_of(settings), dict[str, str]()
    assert people.first()
    roles: tuple[Role, ...] = ("viewer", "reviewer", "operator", "admin")
    for role in roles:
        secrets[role] = people.add(f"the-{role}", role, ("acme",))
    secrets["nobody"] = people.add("nobody", "admin", ())
    secrets["boss"] = people.add("boss", "admin")
    with site(settings) as app:
        yield Shared(app, settings, secrets)


QUERIES = ("", "?route=*", "?limit=500", "?label=labelled", "?end=audit", "?kind=feedback", "?kind=review_verdict")
IDS = ("ep_other_0", "ep_none_0", "ep_acme_0")


def places(endpoint: ConsoleEndpoint) -> Iterator[str]:
    if "{version}" in endpoint.path:
        return
    for name in IDS if "{id}" in endpoint.path else ("",):
        for query in QUERIES:
            yield endpoint.path.replace("{id}", name) + query


def foreign(got: Got) -> list[str]:
    """Texts of other tenants in an answer, in its head too."""
    text = got.body.decode("utf-8", "replace") + repr(got.headers)
    return [canary(tenant) for tenant in TENANTS if tenant != "acme" and canary(tenant) in text]


@pytest.mark.parametrize("name", ["viewer", "reviewer", "operator", "admin", "nobody"])
def test_no_page_and_no_path_shows_anything_of_another_tenant(shared: Shared, name: str) -> None:
    visitor, program = shared.visitor(name), Visitor(shared.app)
    n_displayed = 0
    for endpoint in shared.app.endpoints:
        if endpoint.method != "GET":
            continue
        for place in places(endpoint):
            got = program.get(place, **shared.bearer(name)) if place.startswith("/api") else visitor.get(place)
            assert foreign(got) == [], f"{place} as {name}"
            if not endpoint.by_tenant and endpoint.needs != "nobody":
                assert got.status == 403 or got.headers.get("location") == "/console/runs", place
            n_displayed += canary("acme") in got.body.decode("utf-8", "replace")
    assert (n_displayed == 0) if name == "nobody" else n_displayed > 10, "of its own tenant it shows something"


@pytest.mark.parametrize("item", ["ep_other_1", "ep_none_1"])
def test_no_action_and_no_export_reaches_another_tenants_runs(shared: Shared, item: str) -> None:
    visitor, before = shared.visitor("admin"), n_rows(shared)
    token = visitor.get("/console/runs").text.partition('name="csrf" value="')[2][:64]
    forms = {"item": item, "verdict": "both", "reason": "mine now", "route": "math", "csrf": token, "move": "promote"}
    for endpoint in shared.app.endpoints:
        if endpoint.method != "POST" or endpoint.path in ("/console/login", "/console/logout"):
            continue
        if endpoint.path.endswith(("/review/next", "/views/save")):  # these name no run: the next one, and own views
            continue
        got = visitor.post(endpoint.path, forms)
        assert foreign(got) == [], endpoint.path
        if endpoint.path.endswith(".csv"):
            is_for_all = endpoint.path.endswith("/report.csv")  # as its page, of the whole deployment
            assert got.status == (403 if is_for_all else 200)
            assert is_for_all or canary("acme") in got.text or "changes" in endpoint.path
        else:
            assert got.status in (403, 404), endpoint.path
    assert n_rows(shared) == before, "nothing was changed; exports are noted"


def n_rows(shared: Shared) -> int:
    log = log_location(shared.settings.store)
    return sum(
        len(read_kinds(log, kind)) for kind in ("review_leased", "review_verdict", "review_returned", "feedback")
    )


def test_a_reviewer_gets_items_of_the_own_tenant_only(shared: Shared) -> None:
    program, sent = Visitor(shared.app), {"content_type": "application/json", **shared.bearer("reviewer")}
    for _ in range(4):  # two are left of acme's, and a reviewer holds one at a time
        got = program.ask("POST", "/api/review/next", b"{}", **sent)
        assert got.status == 200
        held = program.get("/api/review", **shared.bearer("reviewer")).json["in_hand"]
        if held is None:
            break
        assert held["item"]["tenant"] == "acme"
        verdict = f'{{"item": "{held["item"]["episode_id"]}", "verdict": "both", "reason": ""}}'.encode()
        given = program.ask("POST", "/api/review/say", verdict, **sent)
        assert given.status == 200
    page = program.get("/api/review", **shared.bearer("reviewer")).json
    assert page["n_waiting"] == 0
    everybody = program.get("/api/review", **shared.bearer("boss")).json
    assert everybody["n_waiting"] == 4, "two of each other tenant still wait"


def test_who_sees_all_tenants_sees_them(shared: Shared) -> None:
    text = Visitor(shared.app).get("/api/episodes?limit=500", **shared.bearer("boss")).text
    assert all(canary(tenant) in text for tenant in TENANTS)


@pytest.mark.parametrize(("name", "n"), [("viewer", N_RUNS), ("admin", N_RUNS), ("nobody", 0)])
def test_the_figures_of_a_tenant_count_its_requests_alone(shared: Shared, name: str, n: int) -> None:
    for query in ("", "?days=7", "?route=math", "?route=*&end=audit", "?class=canary-of-other"):
        got = Visitor(shared.app).get(f"/api/episodes{query}", **shared.bearer(name)).json
        assert got["figures"]["sums"]["n_requests"] == n, query
    assert f"{n} requests" in shared.visitor(name).get("/console/runs").text
    assert Visitor(shared.app).get("/api/episodes", **shared.bearer("boss")).json["figures"] is None


def test_a_key_with_all_objects_sees_those_of_its_tenant() -> None:
    caller = Caller(id="a", permits=Key(key_env="", tenant="acme", all_objects=True))
    assert caller.owns("b", "acme")
    assert not caller.owns("b", "other")
    assert not caller.owns("b", "")
    assert not caller.sees_metrics
