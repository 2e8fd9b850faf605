"""The steps of a rollout, as its rules plan them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.rollout.evidence import Rules
from suffice.rollout.steps import Compare, Prove, Wait, plan_steps
from tests.drawn import examples

SHARES = st.lists(st.floats(0.01, 0.5), min_size=1, max_size=6, unique=True).map(lambda shares: tuple(sorted(shares)))


def test_the_default_rules_plan_shadow_canary_ramp_and_full() -> None:
    shadow, canary, quarter, half, full = plan_steps(Rules())
    assert [(one.stage, one.share) for one in (shadow, canary, quarter, half, full)] == [
        ("shadow", 0.0),
        ("canary", 0.10),
        ("ramp", 0.25),
        ("ramp", 0.50),
        ("full", 1.0),
    ]
    em, required, wait = Prove(guardrails=("em",)), Prove(guardrails=Rules().required), Wait(seconds=600, requests=100)
    assert shadow.until == (em, Wait(seconds=600))
    assert canary.until == (em, Compare(least=100), wait)
    assert quarter.until == (em, Compare(least=200), wait)
    assert half.until == (em, Compare(least=300), required, wait)


@settings(max_examples=examples(50))
@given(shares=SHARES)
def test_whatever_the_shares_nobody_is_served_first_everybody_last_and_the_step_before_proves_what_is_required(
    shares: tuple[float, ...],
) -> None:
    rules = Rules(shares=shares)
    steps = plan_steps(rules)
    assert [one.share for one in steps] == [0.0, *shares, 1.0]
    assert [Prove(guardrails=rules.required) in one.until for one in steps] == [False] * len(shares) + [True, False]
    assert all(Prove(guardrails=("em",)) in one.until for one in steps[:-1])
