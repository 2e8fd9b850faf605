"""A route whose answers cannot be read behaves as observe; probes while observing need a voucher."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from suffice.gateway.context import CHECK_RUNS, GatewayState
from suffice.gateway.request_parsing import ungoverned
from suffice.settings import Settings, Store, parse_settings
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import Event
from suffice.types import Finding, Findings, Outcome, RouteFindings
from suffice.upstream.drivers import url_key
from suffice.wiring.routes import StartupEvidence, build_route, evidence_warnings, read_evidence
from suffice_testing import Reply, ScriptedThought
from tests.gateway.served import chat, served
from tests.records import plain_request

STEPS = [("one and one\n", "2"), *[(f"two and two, for the {n}th time\n", "4") for n in range(12)]]
SLOW = ScriptedThought(STEPS, "4", reply=Reply(delay_s=0.005))  # probes have time to answer before the thought ends
ROUTE: dict[str, Any] = {
    "upstream": "up",
    "mode": "enforce",
    "uncertified": True,
    "scorer": "number",
    "audit_share": 0.0,
    "policy": {"policy": "stable-answer", "streak": 2},
    "probe": {},
    "steps": {"min_tokens": 1, "growth": 1.0},
}
UPSTREAM: dict[str, Any] = {"driver": "llama.cpp", "finish": ["raw"], "slots": 4}


def settings(
    folder: Path, url: str = "http://127.0.0.1:1", driver: str = UPSTREAM["driver"], **changes: Any
) -> Settings:
    return parse_settings(
        {
            "upstreams": {"up": UPSTREAM | {"url": url, "driver": driver}},
            "routes": {"math": ROUTE | changes},
            "store": {"url": f"sqlite:///{folder}/log.db"},
        }
    )


def write(folder: Path, *events: Event) -> None:
    log = LogWriter(Store(url=f"sqlite:///{folder}/log.db"), now=lambda: 0.0)
    for event in events:
        assert log.append(event)
    log.close()


def full_run(name: str, answer: str | None, **changes: Any) -> tuple[Event, Event]:
    """A full run of the route, with the request's fields changed."""
    request = plain_request(name, route="math", policy_version="p", question_key=name)
    outcome = Outcome(episode_id=name, end_reason="done", status=200, answer=answer, response_id=None, usage=None)
    stopped = changes.pop("stopped", False)
    return (
        dataclasses.replace(request, **changes),
        dataclasses.replace(outcome, stopped=stopped, end_reason="stopped" if stopped else "done"),
    )


def runs(n: int, answer: str | None, tag: str, **changes: Any) -> list[Event]:
    return [event for i in range(n) for event in full_run(f"{tag}{i}", answer, **changes)]


def findings(url: str, **verdicts: str) -> Findings:
    result = tuple(Finding(experiment=k, verdict=v, evidence="") for k, v in verdicts.items())  # type: ignore[arg-type]
    return Findings(examination_id="ex", upstream="up", url_key=url_key(url), model="m", at_s=0.0, findings=result)


def refused(folder: Path, **changes: Any) -> str | None:
    """Why the route is refused, as the log has it."""
    report = settings(folder, **changes)
    return build_route("math", report.routes["math"], read_evidence(report)).refused


def test_no_log_and_few_runs_refuse_nothing(tmp_path: Path) -> None:
    assert refused(tmp_path) is None
    write(tmp_path, *runs(29, None, "few"))
    assert refused(tmp_path) is None


def test_unreadable_full_runs_refuse_and_the_check_says_so(tmp_path: Path) -> None:
    write(tmp_path, *runs(10, "4", "good"), *runs(20, None, "bad"))
    assert "10 of the last 30 full runs (33.3%)" in (refused(tmp_path) or "")
    report = settings(tmp_path)
    warnings = evidence_warnings(report, read_evidence(report))
    assert any("routes.math: behaves as observe" in w and "at least 80%" in w for w in warnings)


def test_runs_that_chance_alone_did_not_spare_do_not_count(tmp_path: Path) -> None:
    """Stopped runs are no full runs, and those that a policy did not stop are the hard ones."""
    write(
        tmp_path,
        *runs(30, "4", "good"),
        *runs(50, None, "hard", mode="enforce"),
        *runs(50, None, "cut", mode="enforce", stopped=True),
        *runs(50, None, "tools", ungoverned="tools"),
    )
    assert refused(tmp_path) is None
    write(tmp_path, *runs(30, None, "audit", mode="enforce", audit=True))
    assert "30 of the last 60" in (refused(tmp_path) or "")


def test_an_examination_with_the_scorer_of_today_replaces_the_runs_before_it(tmp_path: Path) -> None:
    write(tmp_path, *runs(40, None, "old"))
    assert refused(tmp_path) is not None
    seen = RouteFindings(examination_id="ex", route="math", scorer="number", at_s=0.0, n_runs=40, n_extractable=39)
    write(tmp_path, seen)
    assert refused(tmp_path) is None
    assert refused(tmp_path, scorer="choice") is not None, "another scorer's examination says nothing"


def test_a_margin_that_no_stream_shows_is_warned_of(tmp_path: Path) -> None:
    report = settings(tmp_path, policy={"policy": "think-brake"})
    known = findings(report.upstreams["up"].url, logprobs_stream="yes")
    for seen, n_warnings in ((StartupEvidence(), 1), (StartupEvidence(upstreams={"up": known}), 0)):
        assert sum("logprobs_stream" in warning for warning in evidence_warnings(report, seen)) == n_warnings


def test_a_form_that_a_way_to_finish_loses_is_warned_of(tmp_path: Path) -> None:
    report = settings(tmp_path)
    known = findings(report.upstreams["up"].url, json_prefill="ignored", json_native="yes", tools_prefill="unclear")
    warnings = [one for one in evidence_warnings(report, StartupEvidence(upstreams={"up": known})) if "finished" in one]
    assert warnings == ["routes.math: requests with a schema are not finished by prefill: up does not keep it there"]


def test_a_required_call_is_warned_of_where_only_doctor_could_say_that_it_is_kept(tmp_path: Path) -> None:
    report = settings(tmp_path, driver="sglang")
    kept = findings(report.upstreams["up"].url, tools_prefill="yes", json_prefill="yes")
    for seen, expected in (
        (StartupEvidence(), ["a required call", "a schema"]),
        (StartupEvidence(upstreams={"up": kept}), []),
    ):
        warnings = [one for one in evidence_warnings(report, seen) if "finished" in one]
        ends = "are not finished by prefill: up does not keep it there"
        assert warnings == [f"routes.math: requests with {fields} {ends}" for fields in expected]


SCHEMA = {"response_format": {"type": "json_object"}}
TOOLS = {"tools": [{"type": "function", "function": {"name": "give_answer", "parameters": {"type": "object"}}}]}
REQUIRED = TOOLS | {"tool_choice": "required"}
NAMED = TOOLS | {"tool_choice": {"type": "function", "function": {"name": "give_answer"}}}


@pytest.mark.parametrize(
    ("fields", "seen", "reason"),
    [
        (SCHEMA, {}, "response_format"),
        (SCHEMA, {"json_prefill": "unclear"}, "response_format"),
        (SCHEMA, {"json_prefill": "yes"}, None),
        (REQUIRED, {}, "tools"),
        (NAMED, {"json_prefill": "yes"}, "tools"),
        (REQUIRED, {"tools_prefill": "yes"}, None),
        (TOOLS | {"tool_choice": "auto"}, {}, None),
    ],
)
def test_sglang_continues_what_its_grammar_constrains_only_where_doctor_saw_it(
    tmp_path: Path, fields: dict[str, Any], seen: dict[str, str], reason: str | None
) -> None:
    report = settings(tmp_path)
    upstream = msgspec.structs.replace(report.upstreams["up"], driver="sglang", finish=("prefill",))
    known = findings(upstream.url, **seen)
    route = build_route("math", report.routes["math"], StartupEvidence(upstreams={"up": known}))
    assert ungoverned(route, chat("what is two and two", **fields), {}, upstream) == reason


@pytest.mark.parametrize("left", [["re-ask"], []])
def test_a_request_passes_through_if_no_way_keeps_its_form(tmp_path: Path, left: list[str]) -> None:
    report = settings(tmp_path)
    upstream = msgspec.structs.replace(report.upstreams["up"], finish=("prefill", *left))
    known = findings(upstream.url, json_prefill="ignored")
    route = build_route("math", report.routes["math"], StartupEvidence(upstreams={"up": known}))
    body = chat("what is two and two", response_format={"type": "json_object"})
    assert ungoverned(route, body, {}, upstream) == (None if left else "response_format")
    assert ungoverned(route, chat("what is two and two"), {}, upstream) is None


@pytest.mark.parametrize("n_unreadable", [0, 30])
async def test_a_refused_route_stops_nothing(tmp_path: Path, n_unreadable: int) -> None:
    write(tmp_path, *runs(n_unreadable, None, "bad"))
    async with served(tmp_path, SLOW, upstream=UPSTREAM, routes={"math": ROUTE}) as g:
        answer = await g.ask(chat("what is two and two", suffice={}))
        assert answer.report["stopped"] is (n_unreadable == 0)
        assert answer.json["choices"][0]["message"]["content"] == "4"


async def test_a_running_route_is_checked_again(tmp_path: Path) -> None:
    """The route of the gateway itself loses its right to act after enough unreadable full runs."""
    async with served(tmp_path, SLOW, upstream=UPSTREAM, routes={"math": ROUTE}) as g:
        seen = g.gateway.statistics["math"]
        for i in range(CHECK_RUNS):
            _, ended = full_run(f"r{i}", None)
            assert isinstance(ended, Outcome)
            is_due = seen.note_full_run(ended)
        assert is_due
        g.gateway.deployment.check_answers("math", tuple(seen.extracted))
        assert not g.gateway.deployment.routes[0].acts
        answer = await g.ask(chat("what is two and two", suffice={}))
        assert answer.report["stopped"] is False


@pytest.mark.parametrize(
    ("verified_by", "seen", "probes"),
    [
        ("doctor", None, False),
        ("owner", None, True),
        ("doctor", {"raw": "yes", "prefix_cache": "yes"}, True),
        ("doctor", {"raw": "yes", "prefix_cache": "no"}, False),
        ("doctor", {"raw": "ignored", "prefix_cache": "yes"}, False),
    ],
)
def test_probes_while_observing_need_a_voucher(
    tmp_path: Path, verified_by: str, seen: dict[str, str] | None, *, probes: bool
) -> None:
    if seen is not None:
        write(tmp_path, findings("http://127.0.0.1:1/v1", **seen))
    report = settings(tmp_path, mode="observe", probe={"verified_by": verified_by})
    evidence = read_evidence(report)
    assert build_route("math", report.routes["math"], evidence).may_probe is probes
    warned = any("verified_by" in w for w in evidence_warnings(report, evidence))
    assert warned is not probes


def test_findings_of_another_address_are_not_used(tmp_path: Path) -> None:
    write(tmp_path, findings("http://127.0.0.1:2", raw="yes", prefix_cache="yes"))
    assert read_evidence(settings(tmp_path)).upstreams == {}


@pytest.mark.parametrize("seen", ["no", "ignored", None])
async def test_usage_is_not_asked_for_where_it_was_refused(tmp_path: Path, seen: str | None) -> None:
    def tell(gateway: GatewayState) -> None:
        """What the gateway would have read at its start, if the address had been known then."""
        if seen is not None:
            gateway.upstreams["up"].findings = findings("", stream_usage=seen)

    route = ROUTE | {"mode": "observe", "probe": None}
    async with served(tmp_path, SLOW, upstream=UPSTREAM, routes={"math": route}, change=tell) as g:
        answer = await g.ask(chat("what is two and two"))
        assert answer.text == "4"
        assert ("stream_options" in g.fake.completions[0].body) is (seen != "no")
