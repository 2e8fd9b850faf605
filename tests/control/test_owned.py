"""An owner's own policy acts when audits have proved it and not before, and full runs come back with what ends that."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.control.evidence.audits import Audit
from suffice.control.evidence.versions import FIXED, fixed_policy_rows
from suffice.control.loop.epoch import ReplayMismatch
from suffice.learn.dataset import as_step
from suffice.policy.base import build_policy
from suffice.settings import Route, parse_settings
from suffice.signals.observe import Observer
from suffice.store.routes.rollouts import own_version
from suffice.store.rows.events import Event
from suffice.types import Episode, Epoch, Feedback, LabelRequest, Outcome, Publication, StepRecord
from tests.control.made import ROUTE, Story, began, label, rows, run, story, traffic
from tests.drawn import examples

OWN = Route(
    upstream="up",
    kind="samples",
    samples=8,
    wave=1,
    scorer="number",
    mode="enforce",
    max_em_drop=0.08,
    confidence=0.9,
    policy={"policy": "beta", "threshold": 0.9},
)


def owned(route: Route = OWN, *, expected: list[Publication] | None = None) -> Story:
    """A loop at the beginning of its epoch."""
    return story(route, held=began(route, burst=0), expected=expected or ())


def split(n: int, *, first: int = 0) -> list[Event]:
    """Runs whose first four samples agree and are outvoted by the last: whoever stops early answers otherwise."""
    log = list[Event]()
    for event in traffic(n, seed=7, first=first, sure=True):
        if isinstance(event, Outcome):
            steps = tuple(replace(one, answer="77" if one.index <= 3 else one.answer) for one in event.steps)
            event = replace(event, steps=steps)  # noqa: PLW2901 - the same run, told otherwise
        log.append(event)
    return log


# ---------------------------------------------------------------- proof


def test_nothing_acts_until_audits_prove_it_and_then_the_very_policy_does() -> None:
    here = owned().feed(rows(traffic(40, sure=True))).settle()
    assert {(one.level, one.certified) for one in here.published} == {(0, False)}, "forty audits prove no twelfth"
    here.feed(rows(traffic(200, sure=True))).settle()
    made = here.published[-1]
    assert (made.level, made.n_levels, made.certified, made.fit, made.arm) == (1, 2, True, "", "")
    assert made.version == own_version(OWN).address
    assert made.is_owned
    assert made.evidence.e_value is not None
    assert made.evidence.e_value >= 1 / (1 - OWN.confidence)
    assert (made.evidence.n_lost, made.setup, made.upstream) == (0, "s1", (("m", "m", "fp"),))
    assert made.evidence.share is not None
    assert 0.2 < made.evidence.share < 0.8, "what that policy saves on easy questions"


def test_a_difference_is_lost_until_somebody_says_otherwise() -> None:
    log = split(200)
    here = owned().feed(rows(log)).settle()
    assert here.loop.level == 0
    assert sum(isinstance(event, LabelRequest) for event in here.decided) >= 180, "each is worth a label"
    labels = [label(number, gold="77") for number in range(200)]  # the early answer was right all the time
    proved = owned().feed(rows([*log, *labels, *split(20, first=200)])).settle()
    assert proved.loop.level == 1
    assert proved.published[-1].evidence.n_gained > 0


def test_a_policy_that_loses_too_much_is_never_in_force() -> None:
    labels = [label(number, correct=True) for number in range(300)]
    log = [one for pair in zip(split(300)[::2], split(300)[1::2], labels, strict=True) for one in pair]
    here = owned().feed(rows(log)).settle()
    assert {one.level for one in here.published} == {0}


@pytest.mark.parametrize(("end", "level"), [("client_left", 0), ("timeout", 1)])
def test_an_audit_that_is_left_counts_as_lost_and_a_full_run_without_an_answer_does_not(end: Any, level: int) -> None:
    log = list[Event]()
    for event in traffic(200, sure=True):
        gone = isinstance(event, Outcome) and int(event.episode_id[3:]) % 5 == 0
        log.append(replace(event, end_reason=end) if gone and isinstance(event, Outcome) else event)
    assert owned().feed(rows(log)).settle().loop.level == level


# ---------------------------------------------------------------- what ends it


def test_losses_that_nobody_announced_end_the_epoch_and_full_runs_come_back() -> None:
    here = owned().feed(rows([*traffic(200, sure=True), *split(100, first=200)])).settle()
    assert here.published[1].level == 1
    assert here.loop.held.level == 0
    reasons = [event.reason for event in here.decided if isinstance(event, Epoch)]
    assert any(reason.startswith("audits ") or "drifted" in reason for reason in reasons)
    assert here.loop.state.epoch.burst == 0, "there is nothing to learn"


def test_another_model_behind_the_name_ends_the_proof_at_once() -> None:
    log = [*traffic(200, sure=True, model="m-1"), *traffic(20, seed=1, first=200, sure=True, model="m-2")]
    here = owned().feed(rows(log)).settle()
    reasons = [event.reason for event in here.decided if isinstance(event, Epoch)]
    assert "model changed from 'm-1' to 'm-2'" in reasons[0]
    assert here.loop.held.level == 0


def test_a_worker_that_was_killed_is_followed_by_one_that_decides_the_same() -> None:
    log = rows(traffic(300))
    whole = owned().feed(log).settle()
    before = owned().feed(log[:433])
    after = owned(expected=before.published).feed(log).settle()
    assert before.published + after.published == whole.published
    assert whole.published


def test_another_policy_in_the_settings_is_another_one_to_be_proved() -> None:
    log = rows(traffic(200, sure=True))
    before = owned().feed(log).settle()
    other = parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "routes": {
                "r": {
                    "upstream": "up",
                    "kind": "samples",
                    "samples": 8,
                    "wave": 1,
                    "scorer": "number",
                    "mode": "enforce",
                    "max_em_drop": 0.08,
                    "confidence": 0.9,
                    "policy": {"policy": "beta", "threshold": 0.8},
                }
            },
        }
    ).routes["r"]
    with pytest.raises(ReplayMismatch, match="its owner has configured another policy"):
        owned(other, expected=before.published).feed(log).settle()


# ---------------------------------------------------------------- what an audit shows


def audit(number: int, rng: random.Random, steps: Any = None, **options: Any) -> Audit:
    request, outcome = run(number, rng, **options)
    if steps is not None:
        outcome = replace(outcome, steps=steps(outcome.steps))
    return Audit(seq=number + 1, at=number, ended_at_s=0.0, episode=Episode(request=request, outcome=outcome))


def counted(audits: list[Audit], policy: dict[str, Any], **changes: Any) -> list[tuple[int, bool, bool]]:
    """Z, difference and whether it counts as left, of each audit at the policy's own stop."""
    known: dict[str, Any] = {
        "kind": "samples",
        "match": lambda answer, gold: answer == gold,
        "wave": 1,
        "counts": {},
        **changes,
    }
    runs = fixed_policy_rows(audits, policy=build_policy(policy), **known)
    assert runs is not None
    at = FIXED.rows(runs)[:, 1]
    return list(zip(runs.z[at].tolist(), runs.d[at].tolist(), runs.abandoned.tolist(), strict=True))


@settings(max_examples=examples(60))
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.6, 0.8, 0.95, 0.99]))
def test_it_counts_what_the_policy_would_have_answered_live(seed: int, threshold: float) -> None:
    rng, table = random.Random(seed), {"policy": "beta", "threshold": threshold}
    audits = [audit(number, rng, p_right=0.5) for number in range(8)]
    policy = build_policy(table)
    differing = []
    for one in audits:
        observer, outcome = Observer(policy.needs, "samples"), one.episode.outcome
        answer = outcome.answer
        for step in outcome.steps:
            seen = observer.observe(as_step(step))
            if policy.decide(seen).stop:
                answer = seen.answer
                break
        differing.append(answer != outcome.answer)
    assert [differs for _, differs, _ in counted(audits, table)] == differing


def test_what_nobody_saw_counts_against_the_policy() -> None:
    def with_gap(at: int) -> Any:
        return lambda steps: tuple(replace(one, answer=None, missing=True) if one.index == at else one for one in steps)

    never, soon = {"policy": "beta", "threshold": 0.999999}, {"policy": "beta", "threshold": 0.8}
    rng = random.Random(0)
    whole, early, late = (audit(n, rng, steps, sure=True) for n, steps in enumerate((None, with_gap(2), with_gap(7))))
    assert counted([whole, early, late], soon) == [(0, False, False), (1, True, False), (0, False, False)]
    assert counted([whole, early, late], never) == [(0, False, False), (1, True, False), (1, True, False)]


def test_in_a_loop_of_rounds_it_counts_the_answer_that_the_policy_returns() -> None:
    def rounds(steps: tuple[StepRecord, ...]) -> tuple[StepRecord, ...]:
        answers, sure = ("a", "b", "b", "b"), (0.9, 0.1, 0.1, 0.1)
        return tuple(
            replace(one, answer=answer, confidence=confidence, answer_source="caller")
            for one, answer, confidence in zip(steps, answers, sure, strict=False)
        )

    one = audit(0, random.Random(0), rounds, kind="rounds", answer="b", n_samples=1)
    last: dict[str, Any] = {"policy": "fixed-rounds", "max_steps": 2}
    best = {"policy": "guarded", "returns": "most-confident", "inner": last}
    feedback = {one.id: Feedback(feedback_id="f", source="reviewer", episode_id=one.id, gold="a")}
    assert counted([one], last, kind="rounds", counts=feedback) == [(0, False, False)]
    assert counted([one], best, kind="rounds", counts=feedback) == [(-1, True, False)]
    assert counted([one], best, kind="rounds") == [(1, True, False)]


def test_only_a_policy_that_waits_for_its_proof_is_proved() -> None:
    assert OWN.is_owned
    assert not ROUTE.is_owned
    plain = {"upstream": "up", "kind": "samples", "policy": {"policy": "beta"}, "mode": "enforce"}
    for change in (
        {"mode": "observe"},
        {"uncertified": True},
        {"policy": {"policy": "never"}},
        {"effort": "low", "kind": "reasoning"},
    ):
        route = parse_settings({"upstreams": {"up": {"url": "http://h"}}, "routes": {"r": plain | change}}).routes["r"]
        assert not route.is_owned
        assert route.is_learned is False
    assert story().loop.context.route.is_learned
