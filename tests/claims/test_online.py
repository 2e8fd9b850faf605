"""The promise kept over time, on simulated traffic whose truth is known, beside naive designs that break it there.

Short streams and few seeds: `make claims-full` runs the same cells in full. A promise for at most 5 % of the streams is
rejected when as many breaches as were seen would have less than a 1 % chance under it; on the same seeds a naive design
must be rejected, so the test can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb
from statistics import median
from typing import Any

import pytest
from bench.claims import streams
from bench.claims.cells import PLAN, run_cell
from bench.claims.streams import Setting, ours

from tests.simulators.traffic_worlds import SCENARIOS, LabelDelays, Path

SOON = LabelDelays(mean_delay=300)
SCATTERED = LabelDelays(delay="geometric", mean_delay=300)
COMPLAINTS = LabelDelays(mean_delay=300, p_when_right=0.05, p_when_wrong=0.5)
# Fewer fits than in service, for time; the rest by default.
SHORT = replace(PLAN, refit_every=2_000)


def short(name: str, labels: LabelDelays = SOON, *, label_timeout: int = 300, at: int = 3_000) -> Setting:
    """A scenario of `make claims-full` with an early drift."""
    scenario = replace(SCENARIOS[name], path=Path(at=at))
    return ours(scenario, f"short {name} {labels} {at}", labels, label_timeout)


def results(
    monkeypatch: pytest.MonkeyPatch, setting: Setting, design: str, n_seeds: int, *, n: int = 6_000
) -> list[dict[str, Any]]:
    """The figures of a design on seeds 0 … n_seeds - 1."""
    monkeypatch.setitem(streams.SETTINGS, setting.name, setting)
    return [run_cell(setting.name, design, seed, n=n, plan=SHORT) for seed in range(n_seeds)]


def rejected(n_breaches: float, n: int, rate: float = 0.05) -> bool:
    """Would so many breaches or more have less than a 1 % chance if their rate was at most `rate`?"""
    k = int(n_breaches)
    return sum(comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k, n + 1)) < 0.01


def breaches(found: Sequence[dict[str, Any]]) -> int:
    """Streams that lost more than the budget, before the drift or after it, or whose level truly does at either end."""
    return sum(
        bool(one["over_pre"] or one["over_post"]) or max(one["true_pre"], one["true_end"]) > one["max_em_drop"]
        for one in found
    )


def test_the_acceptance_rule_itself() -> None:
    assert [k for k in range(17) if not rejected(k, 16)] == [0, 1, 2, 3]
    assert [k for k in range(7) if not rejected(k, 6)] == [0, 1, 2]


@pytest.mark.slow
def test_without_drift_the_budget_is_kept_and_tokens_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = short("none")
    kept = results(monkeypatch, setting, "certified 10 %", 10)
    assert not rejected(breaches(kept), len(kept))
    assert median(one["saved_last"] for one in kept) > 0.15
    naive = [one for design in ("fixed", "feedback") for one in results(monkeypatch, setting, design, 12)]
    assert rejected(breaches(naive), len(naive))


@pytest.mark.slow
def test_a_violent_drift_is_seen_and_the_budget_kept_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = short("harsh")
    kept = results(monkeypatch, setting, "certified 10 %", 10)
    missed = sum(one["alarm_delay"] is None or one["alarm_delay"] > 500 for one in kept)
    assert not rejected(missed, len(kept)), "an alarm within 500 requests in at least 95 %"
    assert median(one["recover"] for one in kept) <= 500
    assert not rejected(breaches(kept), len(kept))
    for design in ("fixed", "once"):
        naive = results(monkeypatch, setting, design, 6)
        assert rejected(breaches(naive), len(naive)), design


@pytest.mark.slow
def test_a_silent_drift_is_outlived_by_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = short("stealth")
    kept = results(monkeypatch, setting, "certified 10 %", 6, n=9_000)
    assert not rejected(breaches(kept), len(kept))
    assert median(one["recover"] for one in kept) <= 4_000
    naive = results(monkeypatch, setting, "fixed", 6, n=9_000)
    assert rejected(breaches(naive), len(naive))
    assert median(one["recover"] for one in naive) == 6_000, "never"


@pytest.mark.slow
def test_labels_that_come_when_something_was_wrong_cannot_mislead(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = short("none", COMPLAINTS)
    kept = results(monkeypatch, setting, "certified 10 %", 5)
    assert not rejected(breaches(kept), len(kept))
    assert median(one["saved_last"] for one in kept) > 0.05, "safe, and still of use"
    naive = results(monkeypatch, setting, "labelled-only", 4)
    assert rejected(breaches(naive), len(naive)), "an average over what was labelled is misled"


@pytest.mark.slow
def test_labels_that_come_at_any_time_cannot_mislead(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = results(monkeypatch, short("none", SCATTERED, label_timeout=1_000), "certified 10 %", 6)
    assert not rejected(breaches(kept), len(kept))
    assert median(one["saved_last"] for one in kept) > 0.15


@pytest.mark.slow
def test_a_model_swapped_under_the_same_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = results(monkeypatch, short("swap"), "certified 10 %", 5)
    assert not rejected(breaches(kept), len(kept))
    assert median(one["alarm_delay"] or 10**9 for one in kept) <= 500
