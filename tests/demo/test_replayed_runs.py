"""Replay reads what a live policy would have read, and charges what it would have cost."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.episode.ledger import Ledger
from suffice.policy.base import Policy, build_policy
from suffice.signals.observe import Observer
from suffice.types import Episode, Kind, Outcome, Query, Step, Usage
from suffice_demo.replayed_runs import replay_run
from tests.contracts.policy_space import SIMPLE, policies
from tests.drawn import examples
from tests.records import plain_request, plain_step

NEVER = build_policy({"policy": "never"})
BETA = build_policy({"policy": "beta"})
STABLE = build_policy({"policy": "stable-answer", "streak": 2})


def episode(kind: Kind, answers: list[str | None], *, tokens: int = 10, probe_tokens: int = 0) -> Episode:
    """A full run whose every step costs the same."""
    request = plain_request("ep", kind=kind, n_samples=len(answers), audit=True, policy_version="p", question_key="q")
    steps = tuple(
        plain_step(
            i,
            tokens=tokens,
            answer=a,
            answer_source="probe" if kind == "reasoning" else "sample",
            probe_tokens=probe_tokens,
        )
        for i, a in enumerate(answers, start=1)
    )
    thought = tokens * len(answers) if kind == "reasoning" else 0
    generated = tokens * len(answers) + 3 * (kind == "reasoning")
    usage = Usage(prompt_tokens=5, completion_tokens=generated, reasoning_tokens=thought)
    outcome = Outcome(
        episode_id="ep", end_reason="done", status=200, answer="final", response_id=None, usage=usage, steps=steps
    )
    return Episode(request=request, outcome=outcome)


def test_a_run_that_is_never_stopped_costs_the_full_run_and_gives_its_answer() -> None:
    """Probes that an audit paid for are charged on top."""
    result = replay_run(episode("reasoning", ["a", "b"], probe_tokens=2), NEVER)
    assert result is not None
    assert (result.stop_step, result.answer, result.tokens, result.full_tokens) == (None, "final", 27, 23)


def test_a_stopped_thought_still_pays_for_its_answer_and_its_probes() -> None:
    """Two steps of ten, three tokens of answer, two probes of two."""
    result = replay_run(episode("reasoning", ["a", "a", "a", "a"], probe_tokens=2), STABLE)
    assert result is not None
    assert (result.stop_step, result.answer, result.tokens) == (2, "a", 20 + 3 + 4)


def test_a_stop_inside_a_wave_is_charged_the_whole_wave() -> None:
    """Four of four agree after the first wave of four; with waves of three, six were launched."""
    run = episode("samples", ["a"] * 8)
    in_fours, in_threes = replay_run(run, BETA, wave=4), replay_run(run, BETA, wave=3)
    assert in_fours is not None
    assert in_threes is not None
    assert (in_fours.stop_step, in_fours.tokens, in_threes.tokens) == (4, 40, 60)


def test_a_policy_that_is_sure_at_the_last_sample_has_stopped_nothing() -> None:
    """There is nothing left to save, live or in replay."""
    result = replay_run(episode("samples", ["a"] * 4), BETA, wave=4)
    assert result is not None
    assert result.stop_step is None


def test_a_run_without_a_natural_end_stands_for_nothing() -> None:
    """A stopped or torn run never shows what the full run would have answered."""
    run = episode("samples", ["a"] * 8)
    assert replay_run(replace(run, outcome=replace(run.outcome, stopped=True)), BETA) is None
    assert replay_run(replace(run, outcome=replace(run.outcome, end_reason="client_left")), BETA) is None


ANSWERS = st.lists(st.sampled_from(["a", "b", None]), min_size=2, max_size=12)


@settings(max_examples=examples(80))
@given(answers=ANSWERS, later=ANSWERS)
def test_a_decision_depends_on_nothing_that_comes_later(answers: list[str | None], later: list[str | None]) -> None:
    """Whatever follows the stop, the stop is the same: a policy in replay cannot see the future."""
    cases: tuple[tuple[Kind, Policy], ...] = (("reasoning", STABLE), ("samples", BETA))
    for kind, policy in cases:
        short = replay_run(episode(kind, [*answers, "x"]), policy)
        long = replay_run(episode(kind, [*answers, "x", *later]), policy)
        assert short is not None
        assert long is not None
        if short.stop_step is not None:
            assert (long.stop_step, long.answer, long.tokens) == (short.stop_step, short.answer, short.tokens)


FACTS = st.none() | st.sampled_from([0.0, 0.3, 0.96, 0.99, 1.0])
LIVE = st.lists(
    st.builds(
        Step,
        index=st.just(1),
        tokens=st.sampled_from([0, 10, 400]),
        answer=st.sampled_from(["a", "a", "b", None]),
        answer_source=st.just("probe"),
        logprobs=st.sampled_from([(), (-0.01,), (-2.0, -0.1)]),
        entropy=FACTS,
        text=st.sampled_from(["so it is a", "wait, but no", "one two three four five six seven eight nine ten"]),
        confidence=FACTS,
        mass=FACTS,
        margin=FACTS,
        closed_entropy=FACTS,
        logprob=FACTS.map(lambda p: p and -p),
        stated_confidence=FACTS,
        reported_done=st.none() | st.booleans(),
    ),
    min_size=2,
    max_size=12,
).map(lambda steps: [replace(step, index=index) for index, step in enumerate(steps, 1)])


@settings(max_examples=examples(60))
@given(steps=LIVE, data=st.data())
def test_a_run_in_the_log_is_stopped_where_it_would_have_been_stopped_live(
    steps: list[Step], data: st.DataObject
) -> None:
    """Whatever a policy reads of a step is kept, though the text is not; only drafts' patience is not."""
    policy = data.draw(st.sampled_from([name for name in SIMPLE if name != "semantic-distance"]).flatmap(policies))
    empty = episode("reasoning", [])
    request = replace(empty.request, query=Query(planned_steps=len(steps)))
    ledger, observer, stopped = Ledger(request, 0.0), Observer(policy.needs, "reasoning", query=request.query), None
    for step in steps:
        signals = observer.observe(step)
        decision = policy.decide(signals)
        ledger.record_step(step, signals, decision)
        stopped = step.index if stopped is None and decision.action == "stop" else stopped
    result = replay_run(Episode(request=request, outcome=replace(empty.outcome, steps=tuple(ledger.steps))), policy)
    assert result is not None
    assert result.stop_step == stopped
