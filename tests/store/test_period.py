"""Figures of a period: they are those of its runs, their intervals cover, and an older log keeps its sums."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from suffice.assurance.estimate import IntervalEstimate, report_of
from suffice.assurance.saving import saved_tokens, spent_tokens
from suffice.store.database.views import open_reader
from suffice.store.routes import rollups
from suffice.store.routes.period import Period, drop_between, period_figures, read_periods, saving_between
from suffice.store.rows.events import Event
from suffice.store.rows.sums import RollupSums
from suffice.types import Outcome, Request
from tests.control.made import run
from tests.control.test_rollup import summed, user_feedback, write

AUDIT_SHARE = 0.25
DAYS = 3


def enforced(number: int, hour: int) -> tuple[Request, Outcome]:
    """A run of a route in enforce: an audit whose stop sometimes loses the answer, or a stopped one."""
    rng = random.Random(number)
    audit = rng.random() < AUDIT_SHARE
    requested, ended = run(number, rng, audit=audit, stopped=not audit)
    propensity = AUDIT_SHARE if audit else 1 - AUDIT_SHARE
    request = replace(
        requested,
        mode="enforce",
        audit=audit,
        propensity=propensity,
        certified=hour % 2 == 0,
        policy_version=f"v{hour % 3}@2",
        arms=(),
    )
    differs = audit and rng.random() < 0.4
    outcome = replace(
        ended,
        stopped=not audit,
        end_reason="done" if audit else "stopped",
        answer="3",
        stop_step=3,
        would_answer="4" if differs else "3",
        tokens_saved_estimate=None if audit else 40 + number % 9,
    )
    return request, outcome


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, Request, Outcome]]]:
    folder, runs = tmp_path_factory.mktemp("log"), list[tuple[int, Request, Outcome]]()
    for hour in (0, 1, 5, 23, 24, 30, 50, 71):
        events: list[Event] = []
        for number in range(100 * hour, 100 * hour + 24):
            request, outcome = enforced(number, hour)
            runs.append((hour, request, outcome))
            events += [request, outcome]
            if number % 3:
                events.append(user_feedback(number, "g", gold="3" if number % 7 else "4"))
        write(folder, events, at_s=3_600.0 * hour + 60)
    summed(folder)
    return folder, runs


def period(folder: Path, **what: Any) -> Period:
    with open_reader(folder / "log.db") as connection:
        return read_periods(connection, **({"since_hour": 0, "until_hour": 72, "bucket_hours": 24} | what))[0]


def ends(one: IntervalEstimate | None) -> tuple[float, float]:
    assert one is not None
    assert one.low is not None
    assert one.high is not None
    return one.low, one.high


def drop_of(runs: list[tuple[int, Request, Outcome]]) -> tuple[int, int, int, int]:
    """Audits, lost, gained and pending of them, from the labels that `log` gave."""
    n = lost = gained = pending = 0
    for _, request, outcome in runs:
        number = int(request.episode_id[3:])
        if not request.audit:
            continue
        n += 1
        if outcome.would_answer != outcome.answer:
            labelled, gold = number % 3 != 0, "3" if number % 7 else "4"
            pending += not labelled
            lost += labelled and gold == outcome.answer
            gained += labelled and gold == outcome.would_answer
    return n, lost, gained, pending


@pytest.mark.parametrize(
    ("what", "holds"),
    [
        ({}, lambda hour, request: True),
        ({"since_hour": 5, "until_hour": 31, "bucket_hours": 5}, lambda hour, request: 5 <= hour < 31),
        ({"route": "r", "version": "v2@2"}, lambda hour, request: request.policy_version == "v2@2"),
        ({"version": "v0@2", "bucket_hours": 1}, lambda hour, request: request.policy_version == "v0@2"),
        ({"query_class": "", "version": "v1@2"}, lambda hour, request: request.policy_version == "v1@2"),
    ],
)
def test_a_period_has_the_figures_of_its_runs_and_its_buckets_add_up(
    log: tuple[Path, list[tuple[int, Request, Outcome]]], what: dict[str, Any], holds: Any
) -> None:
    folder, runs = log
    inside = [one for one in runs if holds(one[0], one[1])]
    result, (n, lost, gained, pending) = period(folder, **what), drop_of(inside)
    total = result.total
    assert total.sums.n_requests == len(inside) == sum(one.sums.n_requests for one in result.buckets)
    assert total.em_drop is not None
    assert total.em_drop.n == n
    assert total.em_drop.value == pytest.approx((lost + pending - gained) / n)
    low, high = ends(total.em_drop)
    assert low <= (lost - pending - gained) / n <= total.em_drop.value <= high
    spent = sum(spent_tokens(one.usage, one.overhead) for _, _, one in inside if one.usage)
    saved = sum(saved_tokens(request, one) or 0 for _, request, one in inside)
    assert total.saving is not None
    assert total.saving.value == pytest.approx(saved / (saved + spent))
    assert total.saved_tokens == saved
    assert total.saved_tokens == pytest.approx(sum(one.saved_tokens or 0.0 for one in result.buckets))
    for one in result.buckets:
        assert what.get("since_hour", 0) <= one.begin_hour < one.end_hour <= what.get("until_hour", 72)
    certified = [(request, one) for _, request, one in inside if request.certified]
    assert total.saved_certified_tokens == sum(saved_tokens(request, one) or 0 for request, one in certified)


def test_the_whole_log_as_a_period_saves_what_every_other_surface_says(
    log: tuple[Path, list[tuple[int, Request, Outcome]]],
) -> None:
    with open_reader(log[0] / "log.db") as connection:
        tally = rollups.read_tallies(connection)["r"]
    measured, total = report_of(tally, route="r").measured, period(log[0]).total
    assert measured.saving is not None
    assert total.saving is not None
    assert total.saving.value == pytest.approx(measured.saving.value, abs=1e-9)
    assert (total.sums.n_lost, total.sums.n_gained) == (measured.n_lost, measured.n_gained)
    assert total.em_drop is not None
    assert measured.em_drop is not None
    assert ends(total.em_drop) == pytest.approx(ends(measured.em_drop))
    assert total.em_drop.value == pytest.approx(measured.em_drop.value)
    assert measured.saved_tokens is not None
    assert (total.saved_tokens, total.saved_certified_tokens) == pytest.approx(
        (measured.saved_tokens.value, measured.saved_certified_tokens)
    )


def test_the_saving_of_several_routes_is_that_of_their_tokens() -> None:
    each = RollupSums(enforced_weight=60, drawn_weight=30, drawn_squares=30)
    large = structs.replace(each, enforced_tokens=45_000, saved_tokens=15_000, drawn_tokens=30_000)
    small = structs.replace(each, enforced_tokens=600, saved_tokens=0, drawn_tokens=300)
    observed = RollupSums(n_requests=1, whole_tokens=100, would_tokens=40)
    saving = saving_between([large, small, observed])
    assert saving is not None
    assert saving.value == pytest.approx(1 - (45_000 + 600) / (60_000 + 600))
    unknown = saving_between([large, structs.replace(small, drawn_weight=0)])
    assert unknown is not None
    assert unknown.low is None, "no audit says how long the full runs of the other route are"
    assert saving_between([observed]) is None
    assert period_figures(observed, 0, 24).would_save == pytest.approx(0.6)
    assert period_figures(large, 0, 24).would_save is None


def test_nothing_is_nothing(tmp_path: Path) -> None:
    write(tmp_path, [])
    summed(tmp_path)
    total = period(tmp_path).total
    assert (total.em_drop, total.saving, total.saved_tokens, total.would_save) == (None, None, None, None)
    assert period(tmp_path).buckets == ()


def test_observed_runs_show_what_stops_would_have_lost(tmp_path: Path) -> None:
    events: list[Event] = []
    for number in range(40):
        request, outcome = run(number, random.Random(number), audit=False)
        requested = replace(request, mode="observe", arms=())
        events += [requested, replace(outcome, stop_step=2, answer="3", would_answer="4" if number % 4 == 0 else "3")]
        events.append(user_feedback(number, "g", gold="3"))
    write(tmp_path, events)
    summed(tmp_path)
    total = period(tmp_path).total
    assert total.saving is None
    assert total.would_save is not None
    assert total.em_drop is not None
    assert total.em_drop.value == pytest.approx(0.25)


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.004, 0.0), (0.02, 0.005), (0.1, 0.08)])
def test_intervals_cover_the_requests_of_the_period_though_audits_are_drawn_unequally(
    p_lost: float, p_gained: float
) -> None:
    """1,500 fixed requests, long ones losing more and audited more often; 400 draws. A naive mean misses."""
    rng = np.random.default_rng(int(1_000 * p_lost))
    n = 1_500
    tokens = rng.lognormal(6, 0.8, n)
    longer = tokens > np.median(tokens)
    drop = np.where(rng.random(n) < p_lost * (0.5 + longer), 1, -1 * (rng.random(n) < p_gained))
    share = np.where(longer, 0.4, 0.1)
    spent, truth = tokens * np.where(longer, 0.4, 0.8), drop.mean()
    saved = 1 - spent.sum() / tokens.sum()
    hits_drop = hits_saving = naive = 0
    for _ in range(400):
        audit = rng.random(n) < share
        w, z, full = 1 / share[audit], drop[audit], tokens[audit]
        sums = RollupSums(
            n_audits=int(audit.sum()),
            pair_weight=float(w.sum()),
            pair_squares=float((w * w).sum()),
            lost_weight=float(w[z == 1].sum()),
            gained_weight=float(w[z == -1].sum()),
            enforced_weight=float(n),
            enforced_tokens=float(spent.sum()),
            saved_tokens=round(n * float(w @ full) / float(w.sum()) - float(spent.sum())),  # as audits have it
            drawn_weight=float(w.sum()),
            drawn_tokens=float((w * full).sum()),
            drawn_squares=float((w * w).sum()),
            drawn_square_tokens=float((w * w * full).sum()),
            drawn_square_squares=float((w * w * full * full).sum()),
        )
        low, high = ends(drop_between(sums))
        hits_drop += low <= truth <= high
        low, high = ends(saving_between([sums]))
        hits_saving += low <= saved <= high
        naive += low <= 1 - spent.sum() / (n * full.mean()) <= high
    assert hits_drop >= 0.93 * 400, hits_drop / 400
    assert hits_saving >= 0.93 * 400, hits_saving / 400
    assert naive < 0.5 * 400, "audits counted alike would be wrong"
