"""The learned policy: when it stops, what it calls it, and that it goes on where nothing is known."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.model.artefact import StepCost, StopModel, TrainingRecord, load_model
from suffice.model.ensemble import Ensemble, Linear
from suffice.policy.base import build_policy, describe, stops_of, version_of
from suffice.policy.columns import CODES, CONTINUE, SUFFICES, QueryColumns, decide_rows
from suffice.policy.learned import LearnedPolicy
from suffice.signals.observe import Observer, observe_columns
from suffice.types import Query, Signals, Step
from tests.drawn import examples

PROPERTY = settings(max_examples=examples(40))
TRAINED = TrainingRecord(n_episodes=900, n_questions=300, digest="d", target="as-good", seed=0)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def model(**changes: Any) -> StopModel:
    """P(as good) is the confidence itself; P(the full run fails) is 1 minus the agreement, where it is on."""
    usual: dict[str, Any] = {
        "features": ("logit(confidence)", "logit(agreement)", "unknown(confidence)", "class=easy"),
        "suffices": Ensemble((Linear((1.0, 0.0, 0.0, 0.0), 0.0),)),
        "hopeless": Ensemble((Linear((0.0, -1.0, 0.0, 0.0), 0.0),)),
        "trained": TRAINED,
    }
    return StopModel(**{**usual, **changes})


def seen(**known: Any) -> Signals:
    usual: dict[str, Any] = {"step": 4, "tokens_used": 400, "answer": "7", "confidence": 0.95, "agreement": 0.9}
    return Signals(**{**usual, **known})


@pytest.mark.parametrize(
    ("confidence", "agreement", "answer", "on_hopeless", "stop_reason"),
    [
        (0.95, 0.9, "7", "stop", "suffices"),
        (0.85, 0.9, "7", "stop", None),
        (0.95, 0.9, None, "stop", None),
        (0.95, 0.4, "7", "stop", "hopeless"),
        (0.95, 0.4, None, "stop", "hopeless"),
        (0.85, 0.4, None, "stop", None),
        (0.95, 0.4, "7", "continue", None),
        (0.95, 0.4, None, "continue", None),
        (0.95, 0.9, "7", "continue", "suffices"),
    ],
)
def test_it_stops_where_the_risk_is_small_and_says_why(
    confidence: float, agreement: float, answer: str | None, on_hopeless: Any, stop_reason: str | None
) -> None:
    policy = LearnedPolicy(model=model(), threshold=0.1, on_hopeless=on_hopeless)
    decision = policy.decide(seen(confidence=confidence, agreement=agreement, answer=answer))
    assert decision.stop_reason == stop_reason
    if decision.score is not None:
        assert decision.score == pytest.approx(1 - confidence)


def test_a_model_without_a_hopeless_side_never_gives_up() -> None:
    policy = LearnedPolicy(model=model(hopeless=None), threshold=0.1, on_hopeless="stop")
    assert policy.decide(seen(agreement=0.0)).stop_reason == "suffices"
    assert policy.decide(seen(agreement=0.0, answer=None)).action == "continue"


def test_it_does_not_stop_before_its_first_step() -> None:
    policy = LearnedPolicy(model=model(), threshold=0.1, min_steps=5)
    assert [policy.decide(seen(step=step)).action for step in (4, 5)] == ["continue", "stop"]


def test_a_run_whose_steps_cost_more_may_be_stopped_at_a_larger_risk() -> None:
    policy = LearnedPolicy(model=model(cost=StepCost(0.5, 10.0)), threshold=0.1)
    at_usual_cost, cheap, dear = (policy.decide(seen(step=1, tokens_used=n, confidence=0.85)) for n in (100, 25, 400))
    assert [decision.action for decision in (at_usual_cost, cheap, dear)] == ["continue", "continue", "stop"]
    assert [d.score for d in (at_usual_cost, cheap, dear)] == pytest.approx([0.15, 0.3, 0.075])


def test_a_class_may_have_a_threshold_of_its_own() -> None:
    policy = LearnedPolicy(model=model(classes=(("easy", 0.3), ("hard", 0.01))), threshold=0.1)
    assert "query" in policy.needs
    request = {"easy": Query(query_class="easy"), "hard": Query(query_class="hard"), "other": Query(), "": None}
    for confidence, stopped in ((0.75, ["easy"]), (0.95, ["easy", "other", ""]), (0.995, list(request))):
        decided = {name: policy.decide(seen(confidence=confidence, query=query)) for name, query in request.items()}
        assert [name for name, decision in decided.items() if decision.stop] == stopped


RESULTS = ((("n_words", True, 20.0),), ())  # long questions, and all others


def test_a_found_class_is_told_by_the_models_own_rules_and_not_by_what_was_declared() -> None:
    own = (("n_words > 20", 0.01), ("every query", 0.3))
    policy = LearnedPolicy(model=model(classes=own, class_rules=RESULTS), threshold=0.1)
    request = {
        "long": Query(n_words=30, query_class="every query"),
        "short": Query(n_words=5),
        "unread": Query(),
        "": None,
    }
    for confidence, stopped in ((0.75, ["short", "unread"]), (0.95, ["short", "unread", ""]), (0.995, list(request))):
        decided = {name: policy.decide(seen(confidence=confidence, query=query)) for name, query in request.items()}
        assert [name for name, decision in decided.items() if decision.stop] == stopped
    for rules, says in (((("answer_streak", True, 1.0),), "known after the first token"), ((("x", True, 1.0),), "x")):
        with pytest.raises(ConfigError, match=rf"policy\.learned\.model\.class_rules: .*{says}"):
            LearnedPolicy(model=model(class_rules=(rules,)))


@pytest.mark.parametrize("on_hopeless", ["stop", "continue"])
def test_it_goes_on_where_nothing_that_the_model_reads_of_the_run_is_known(on_hopeless: Any) -> None:
    sure = Ensemble((Linear((0.0, 0.0, 9.0, 0.0), 9.0),))  # the less is known, the surer
    policy = LearnedPolicy(model=model(suffices=sure, hopeless=sure), threshold=0.5, on_hopeless=on_hopeless)
    assert policy.decide(seen(confidence=None)).action == ("stop" if on_hopeless == "stop" else "continue")
    for nothing in (None, math.nan):
        for query in (None, Query(query_class="easy")):
            decision = policy.decide(seen(confidence=nothing, agreement=nothing, query=query))
            assert decision.action == "continue"
            assert "nothing that the model reads" in decision.reason


def test_the_first_step_that_passes_is_where_the_running_minimum_of_the_risk_would() -> None:
    policy, rng = LearnedPolicy(model=model(), threshold=0.2), np.random.default_rng(0)
    for _ in range(50):
        run = [seen(step=at, confidence=p) for at, p in enumerate(rng.uniform(0.5, 1, 12).tolist(), 1)]
        first = next((s.step for s in run if policy.decide(s).stop), None)
        lowest = np.minimum.accumulate([1 - (s.confidence or 0) for s in run])
        assert first == next((at for at, risk in enumerate(lowest, 1) if risk <= 0.2), None)


@PROPERTY
@given(
    seed=st.integers(0, 2**32),
    on_hopeless=st.sampled_from(["stop", "continue"]),
    by_cost=st.booleans(),
    with_rules=st.booleans(),
)
def test_columns_with_queries_are_decided_as_live(seed: int, on_hopeless: Any, by_cost: bool, with_rules: bool) -> None:
    rng = np.random.default_rng(seed)
    changes: dict[str, Any] = {"classes": (("easy", 0.6),), "cost": StepCost(0.5 if by_cost else 0.0, 5.0)}
    if with_rules:
        changes |= {"classes": (("n_words > 20", 0.6),), "class_rules": RESULTS}
    policy = LearnedPolicy(model=model(**changes), threshold=0.25, on_hopeless=on_hopeless)
    queries = [Query(query_class="easy", n_words=5), None, Query(query_class="hard", n_words=30)]
    runs = [(query, [step_of(rng, at) for at in range(1, 8)]) for query in queries]
    columns = observe_columns(policy.needs, "reasoning", runs)
    run = np.repeat(np.arange(3), 7)
    request = QueryColumns({**columns.values, "answer": columns.answer}, queries=queries, run=run)
    live = []
    for query, steps in runs:
        observer = Observer(policy.needs, "reasoning", query=query)
        live += [policy.decide(observer.observe(step)) for step in steps]
    expected = [CODES[decision.stop_reason] for decision in live]
    assert stops_of(policy, request).tolist() == decide_rows(policy, request).tolist() == expected
    risks = policy.risks(request).risk.tolist()
    for decision, risk in zip(live, risks, strict=True):
        if decision.stop:
            assert decision.score == pytest.approx(risk, rel=1e-9)


def step_of(rng: np.random.Generator, index: int) -> Step:
    confidence = None if rng.random() < 0.2 else float(rng.random())
    answer = None if rng.random() < 0.3 else "ab"[int(rng.integers(2))]
    return Step(
        index=index, tokens=int(rng.integers(0, 60)), answer=answer, answer_source="probe", confidence=confidence
    )


@settings(PROPERTY, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_a_threshold_that_is_a_risk_seen_in_replay_stops_that_very_step_live(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = tuple(rng.normal(size=4).tolist())
    picky = model(suffices=Ensemble((Linear(weights, 0.1), Linear(weights[::-1], -0.3))), hopeless=None)
    columns = {
        "step": np.arange(1.0, 31),
        "tokens_used": rng.integers(1, 99, 30).cumsum().astype(float),
        "answer": np.zeros(30),
        "confidence": rng.random(30),
        "agreement": rng.random(30),
    }
    risk = LearnedPolicy(model=picky).risks(columns).risk
    for at in range(30):
        policy = LearnedPolicy(model=picky, threshold=float(risk[at]))
        live = decide_rows(policy, columns)
        assert live[at] == SUFFICES
        assert live.tolist() == policy.stops(columns).tolist()


def test_the_version_follows_the_models_address_and_the_policys_own_parameters() -> None:
    one, other = LearnedPolicy(model=model()), LearnedPolicy(model=model(cost=StepCost(0.5)))
    assert len({version_of(p) for p in (one, other, dataclasses.replace(one, threshold=0.5))}) == 3
    written = describe(one)
    assert load_model(written["model"]) == one.model
    assert version_of(build_policy(written)) == version_of(one)
    assert hash(build_policy(written)) == hash(one)


def test_it_can_be_sent_to_another_process() -> None:
    policy = LearnedPolicy(model=model())
    again = pickle.loads(pickle.dumps(policy))
    assert again == policy
    assert again.decide(seen()) == policy.decide(seen())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 7}, r"policy\.learned\.model\.schema: Invalid enum value 7"),
        (
            {"features": ["logit(confidense)", "step", "n_words", "lead"]},
            r"policy\.learned\.model\.features\[0\]: unknown field 'confidense'; did you mean 'confidence'",
        ),
        (
            {"features": ["step", "tokens_used", "log1p(step)", "has_answer"]},
            r"policy\.learned\.model\.features: got none that reads the run; at least one",
        ),
        (
            {"suffices": {"parts": [{"kind": "linear", "weights": [1.0], "intercept": 0.0}]}},
            r"policy\.learned\.model\.suffices\.parts\[0\]\.weights: got 1; one for each of 4 features",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_anything_is_served(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        build_policy({"policy": "learned", "model": {**msgspec.to_builtins(model()), **change}})


def test_it_may_be_guarded_and_still_reads_the_queries() -> None:
    inner = {"policy": "learned", "model": msgspec.to_builtins(model(classes=(("easy", 0.9),))), "threshold": 0.0}
    policy = build_policy({"policy": "guarded", "inner": inner, "min_steps": 2})
    columns = {name: np.full(4, value) for name, value in (("answer", 0.0), ("confidence", 0.5), ("agreement", 0.9))}
    columns |= {"step": np.array([1.0, 2, 1, 2]), "tokens_used": np.ones(4)}
    request = QueryColumns(columns, queries=[Query(query_class="easy"), None], run=np.array([0, 0, 1, 1]))
    assert stops_of(policy, request).tolist() == [CONTINUE, SUFFICES, CONTINUE, CONTINUE]
