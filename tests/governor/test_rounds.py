"""What holds for every run of every loop, whatever its steps tell: properties of the one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.episode.ledger import Ledger
from suffice.episode.loop import GuardedPolicy, StopRight
from suffice.episode.rounds import RoundsRun, StepReport, last_answer
from suffice.errors import BadRequest
from suffice.policy.base import build_policy
from suffice.policy.protocol import return_step, returning, returns_of
from suffice.scoring.base import build_scorer
from suffice.types import Kind
from tests.drawn import examples
from tests.records import plain_request

POLICIES: tuple[dict[str, Any], ...] = (
    {"policy": "stable-answer", "streak": 2},
    {"policy": "confidence-threshold", "threshold": 0.6},
    {"policy": "fixed-budget", "max_tokens": 40},
    {"policy": "guarded", "inner": {"policy": "stable-answer", "streak": 2}, "returns": "most-frequent"},
    {"policy": "guarded", "inner": {"policy": "never"}, "max_steps": 3, "returns": "most-confident"},
)
STEPS = st.lists(
    st.builds(
        StepReport,
        answer=st.none() | st.sampled_from(["", "a", "b", "A ", "c d"]),
        tokens=st.integers(0, 30),
        text=st.sampled_from(["", "a", "so it is b"]),
        confidence=st.none() | st.floats(),
        ctx_tokens=st.integers(0, 9),
        logprobs=st.lists(st.floats(max_value=0), max_size=3).map(tuple),
        logprob=st.none() | st.floats(),
        stated_confidence=st.none() | st.floats(),
        reported_done=st.none() | st.booleans(),
        action=st.none() | st.sampled_from(["search", "tool"]),
    ),
    min_size=1,
    max_size=8,
)


def run(policy: dict[str, Any], *, acts: bool, kind: Kind = "rounds", audit: bool = False) -> RoundsRun:
    built = build_policy(policy)
    request = plain_request(
        "ep",
        kind=kind,
        mode="enforce",
        model="",
        n_samples=8,
        audit=audit,
        propensity=0.5,
        policy_version="p",
        question_key="q",
    )
    ledger = Ledger(request, 0.0)
    return RoundsRun(
        ledger=ledger,
        scorer=build_scorer("text"),
        policy=GuardedPolicy(built, ("stability", *built.needs), ledger, lambda: 0.0),
        right=StopRight(ledger=ledger, acts=acts, has_ended=lambda: False),
        returning=returning(built),
    )


@pytest.mark.parametrize("kind", ["rounds", "reasoning", "samples"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p['policy']} {p.get('returns', '')}".strip())
@settings(max_examples=examples(20))
@given(steps=STEPS)
def test_an_audit_never_stops_and_sees_what_a_stop_would_have_given(
    policy: dict[str, Any], kind: Kind, steps: list[StepReport]
) -> None:
    audit, live = run(policy, acts=False, kind=kind, audit=True), run(policy, acts=True, kind=kind)
    stopped_at = None
    for index, report in enumerate(steps, 1):
        assert not audit.take(index, report).stop
        if stopped_at is None and live.take(index, report).stop:
            stopped_at = index
    answers = [seen.answer for seen in audit.seen]
    live.finish()
    audit.finish()
    # The audit's shadow stop is where a live run of the same steps ends, with the answer that it delivers.
    if stopped_at is not None:
        assert (audit.ledger.stop.step, audit.ledger.stop.would_answer) == (stopped_at, live.ledger.reply.answer)
    elif audit.ledger.reply.answer != live.ledger.reply.answer:
        assert (audit.ledger.stop.step, audit.ledger.stop.would_answer) == (len(steps), live.ledger.reply.answer)
    else:
        assert audit.ledger.stop.step is None
    assert (audit.ledger.stop.acted, live.ledger.stop.acted) == (False, stopped_at is not None)
    known = [seen.answer for seen in live.seen]
    if kind != "samples" and any(known):
        assert audit.return_step == last_answer(answers)
        chosen = return_step(returns_of(build_policy(policy)), known, [seen.confidence for seen in live.seen])
        assert live.return_step == chosen
    assert audit.ledger.degraded == live.ledger.degraded == []


@settings(max_examples=examples(40))
@given(steps=STEPS, data=st.data())
def test_telling_a_step_again_changes_nothing_and_a_gap_is_refused(
    steps: list[StepReport], data: st.DataObject
) -> None:
    once, again = run(POLICIES[0], acts=True), run(POLICIES[0], acts=True)
    for index, report in enumerate(steps, 1):
        decision = once.take(index, report)
        assert again.take(index, report) == decision
        earlier = data.draw(st.integers(1, index))
        assert again.take(earlier, steps[earlier - 1]) == once.seen[earlier - 1].decision
        with pytest.raises(BadRequest, match="the next step of this run is"):
            again.take(index + 2, report)
        with pytest.raises(BadRequest, match="already reported with another answer or token count"):
            again.take(earlier, StepReport(answer="another", tokens=steps[earlier - 1].tokens))
    for one in (once, again):
        one.finish()
    assert once.ledger.close(now_s=0.0, default="done") == again.ledger.close(now_s=0.0, default="done")


@settings(max_examples=examples(40))
@given(steps=STEPS)
def test_every_token_that_is_told_is_counted_once(steps: list[StepReport]) -> None:
    one = run(POLICIES[0], acts=True)
    for index, report in enumerate(steps, 1):
        one.take(index, report)
    one.finish()
    ended = one.ledger.close(now_s=0.0, default="done")
    assert ended.usage is not None
    assert ended.usage.completion_tokens == sum(report.tokens for report in steps) == sum(s.tokens for s in ended.steps)
    assert (
        ended.usage.prompt_tokens
        == sum(report.ctx_tokens for report in steps)
        == sum(s.ctx_tokens for s in ended.steps)
    )
    assert (ended.overhead.probe_tokens, ended.overhead.extra_prompt_tokens, ended.cost_usd) == (0, 0, None)


def test_the_page_of_the_api_lists_every_field_that_is_read(tmp_path: Path) -> None:
    from suffice.gateway.rounds_service import FIELDS, SIGNAL_FIELDS, STEP_FIELDS
    from tests.house.tree import ROOT

    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8").partition("\n## Decide\n")[2]
    missing = [field for field in (*FIELDS, *STEP_FIELDS, *SIGNAL_FIELDS) if f"`{field}`" not in page]
    assert not missing
