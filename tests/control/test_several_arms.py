"""Several efforts on one route: each is proved for itself, classes may get different ones, and no mixture slips by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from suffice.agent.plan import AgentPlan, describe_class_plan
from suffice.control.loop.paired import MIXED_PART, PairedEvidence, arm_part
from suffice.errors import ConfigError
from suffice.review.holds import Override, OverrideEnd
from suffice.settings import Route, parse_settings
from suffice.store.database.log import StoredEvent
from suffice.store.people.alerts import alert_of, resolutions_of
from suffice.store.routes.deployments import read_decided
from suffice.store.rows.events import Event, FeedbackEvent
from suffice.types import Alarm, Epoch, Feedback, Outcome, Query, Usage
from suffice.wiring.worker import open_worker
from tests.control.made import CONTROL, Story, began, rows, story
from tests.control.test_worker import fill, only
from tests.records import plain_request

ARMS = "effort=medium", "effort=low"
ROUTE = Route(upstream="up", effort=("medium", "low"), mode="enforce", max_em_drop=0.05, confidence=0.95)
NOTHING: Mapping[tuple[str, str], float] = {}


def paired_runs(
    n: int,
    *,
    first: int = 0,
    seed: int = 0,
    lost: Mapping[tuple[str, str], float] = NOTHING,
    tokens: Mapping[tuple[str, str], int] | None = None,
    classes: tuple[str, ...] = ("",),
    left: float = 0.0,
    arms: Sequence[str] = ARMS,
    gained: Mapping[tuple[str, str], float] = NOTHING,
) -> list[Event]:
    """Audits with a second call by one of both arms. `lost`, `gained`, `tokens`: by class and arm; `left`: clients."""
    rng, events = np.random.default_rng([seed, first]), list[Event]()
    for number in range(first, first + n):
        name, arm, query_class = f"ep_{number:06}", str(rng.choice(arms)), str(rng.choice(classes))
        wrong, gone = rng.random() < lost.get((query_class, arm), 0.0), rng.random() < left
        gains = query_class in {name for name, _ in gained} and rng.random() < gained.get((query_class, arm), 0.0)
        usual = {ARMS[0]: 500}.get(arm, 200)
        request = plain_request(
            name,
            mode="enforce",
            audit=True,
            policy_version="",
            question_key=f"q{number}",
            received_at_s=float(number),
            unit=f"u{number}",
            query=Query(query_class=query_class),
        )
        outcome = Outcome(
            episode_id=name,
            end_reason="client_left" if gone else "done",
            status=200,
            answer="4",
            response_id=f"r-{name}",
            usage=Usage(prompt_tokens=5, completion_tokens=800),
            pair_arm=None if gone else arm,
            pair_propensity=None if gone else 0.45,
            pair_answer="7" if wrong or gains else "4",
            pair_tokens=(tokens or {}).get((query_class, arm), usual),
        )
        events += [request, outcome]
        if (wrong or gains) and not gone:
            gold = "7" if gains else "4"
            label = Feedback(feedback_id=f"f{number}", episode_id=name, gold=gold, source="reviewer")
            events.append(FeedbackEvent(label))
    return events


def armed(route: Route = ROUTE, **options: Any) -> Story:
    control = msgspec.structs.replace(CONTROL, tick_requests=100)
    return story(route, control=control, held=began(route, burst=0), **options)


def every(arm: str, p: float) -> dict[tuple[str, str], float]:
    return {("", arm): p}


def test_the_cheapest_arm_acts_whose_predecessors_are_proved_too() -> None:
    here = armed().feed(rows(paired_runs(1_000))).settle()
    made = here.published[-1]
    assert (made.level, made.n_levels, made.arm, made.version, made.certified) == (2, 3, ARMS[1], ARMS[1], True)
    assert made.pairs is not None
    assert made.pairs.n == pytest.approx(made.at / 2, rel=0.15), "each arm has its own pairs"


@pytest.mark.parametrize(("broken", "level"), [(ARMS[0], 0), (ARMS[1], 1)])
def test_an_arm_that_loses_too_much_ends_the_sequence(broken: str, level: int) -> None:
    here = armed().feed(rows(paired_runs(1_200, lost=every(broken, 0.2)))).settle()
    assert here.loop.level == level
    assert [one.arm for one in here.published if one.level] == [ARMS[0]] * level


def test_each_arm_has_its_part_of_delta_and_a_single_one_has_all_of_it() -> None:
    assert arm_part(1) == 1
    assert 2 * arm_part(2) + MIXED_PART == pytest.approx(1)
    assert armed().loop.source.delta_part == pytest.approx(0.4)


def test_an_arm_that_gets_worse_is_taken_away_and_the_one_before_stays_or_returns() -> None:
    later = paired_runs(1_500, first=1_000, lost=every(ARMS[1], 0.07))
    here = armed().feed(rows(paired_runs(1_000))).feed(rows(later, first=9_000)).settle()
    assert [one.level for one in here.published if one.epoch == 1][0:1] == [2]
    assert (here.loop.level, here.published[-1].arm) == (1, ARMS[0])


def test_losses_of_the_first_arm_end_the_epoch() -> None:
    later = paired_runs(400, first=1_000, lost=every(ARMS[0], 0.5))
    here = armed().feed(rows(paired_runs(1_000))).feed(rows(later, first=9_000)).settle()
    assert any(isinstance(one, Epoch) for one in here.decided)


def falls_and_returns() -> list[StoredEvent]:
    """The cheapest arm begins to lose a third of the answers, and is as good as before later on."""
    later = paired_runs(500, first=1_000, lost=every(ARMS[1], 0.33))
    return [*rows(paired_runs(1_000)), *rows(later, first=9_000), *rows(paired_runs(1_500, first=1_500), first=15_000)]


def test_an_alarm_about_a_later_arm_takes_that_one_and_leaves_the_ones_before() -> None:
    here = armed().feed(falls_and_returns()).settle()
    assert not any(isinstance(one, Epoch) for one in here.decided)
    assert [(one.level, one.arm) for one in here.published if one.level] == [(2, ARMS[1]), (1, ARMS[0]), (2, ARMS[1])]
    (alarm,) = [one for one in here.decided if isinstance(one, Alarm)]
    assert (alarm.level, alarm.cause, alarm.epoch) == (2, "outcomes", 1)
    assert here.loop.held.alarm == alarm
    _, lost, returned = here.published
    assert (alarm.at, alarm.reason) == (lost.at, lost.reason)
    notice, cause = alert_of(alarm) or (None, None)
    assert notice is not None
    assert cause is not None
    assert (notice.kind, "effort=low: audits" in notice.sentence) == ("drift", True)
    assert not any(one.ends(cause) for one in resolutions_of(lost))
    assert any(one.ends(cause) for one in resolutions_of(returned))
    assert lost.reason.startswith("effort=low: audits ")
    assert 1_000 < lost.at <= 1_300, "within some dozens of its pairs"
    evidence = returned.evidence
    assert evidence.n_lost == 0, "pairs from before do not count again"
    assert evidence.e_value is not None
    source = here.loop.source
    assert isinstance(source, PairedEvidence)
    share = source.delta_of(1) / (0.05 * arm_part(2))
    assert share < 0.2, "evidence that begins anew after a few requests has little of delta"
    assert evidence.e_value >= 1 / (0.05 * arm_part(2) * share) > 1_000 / 5


def test_a_worker_that_joins_after_an_arm_was_taken_away_decides_the_same() -> None:
    log = falls_and_returns()
    whole = armed().feed(log).settle()
    assert len(whole.published) == 3
    for cut in (2_500, 4_000):
        before = armed().feed(log[:cut])
        after = armed(expected=before.published).feed(log).settle()
        assert before.published + after.published == whole.published


@pytest.mark.slow
def test_a_lost_arm_whose_loss_stays_the_budget_hardly_acts_again_however_often_its_evidence_begins_anew() -> None:
    acted, n, began_anew = 0, 0, 0
    for seed in range(6):
        here = armed().feed(rows(paired_runs(800, seed=seed)))
        here.feed(rows(paired_runs(400, first=800, seed=seed, lost=every(ARMS[1], 0.33)), first=9_000))
        assert here.loop.level == 1
        source = here.loop.source
        assert isinstance(source, PairedEvidence)
        for stored in rows(paired_runs(3_000, first=1_200, seed=seed, lost=every(ARMS[1], 0.05)), first=15_000):
            delta = source.delta_of(1)
            here.feed([stored])
            acted, n = acted + (here.loop.level == 2), n + 1
            began_anew += source.delta_of(1) != delta
    assert began_anew >= 6
    assert acted / n <= 0.05


def test_clients_that_leave_cost_each_arm_its_share_of_them_only() -> None:
    """Three in a hundred leave. Counted against both arms in full, they would be six in a hundred pairs."""
    here = armed().feed(rows(paired_runs(3_000, left=0.03))).settle()
    assert here.loop.level == 2
    source = here.loop.source
    assert isinstance(source, PairedEvidence)
    assert sum(pair.arm == "" for pair in source.pairs(here.loop.state.audits)) > 60


def test_a_replay_decides_the_same() -> None:
    log = rows(paired_runs(1_000, lost=every(ARMS[1], 0.01), classes=("a", "b")))
    whole = armed().feed(log).settle()
    assert len(whole.published) >= 1
    for cut in (900, 1_500):
        before = armed().feed(log[:cut])
        after = armed(expected=before.published).feed(log).settle()
        assert before.published + after.published == whole.published


# --------------------------------------------------------------------------- classes

LAW, MATHS = {("law", arm): 0.09 for arm in ARMS}, {("maths", arm): 0.5 for arm in ARMS}
UNEQUAL: dict[str, Any] = {"classes": ("law", "law", "law", "maths"), "lost": LAW, "gained": MATHS}


def in_full(**changes: Any) -> Override:
    known: dict[str, Any] = {"kind": "observe", "query_class": "maths", "reason": "a complaint", "author": "ann"}
    return Override(route="r", number=1, set_at_s=0.0, expires_at_s=1e9, **(known | changes))


def served_drop(here: Story, level: int, *, full: str = "") -> float:
    """The mean EM drop of all pairs of the arm at a level, with one class in full."""
    source = here.loop.source
    assert isinstance(source, PairedEvidence)
    arm = here.loop.context.route.arms[level - 1]
    pairs = [pair for pair in source.pairs(here.loop.state.audits) if pair.arm == arm]
    return float(np.mean([0 if pair.query_class == full else pair.z for pair in pairs]))


@pytest.mark.parametrize("arms", [ARMS, ARMS[1:]], ids=["two", "one"])
def test_a_class_that_a_person_holds_in_full_takes_its_gains_out_of_the_certificate(arms: Sequence[str]) -> None:
    effort = tuple(arm.removeprefix("effort=") for arm in arms)
    route = msgspec.structs.replace(ROUTE, effort=effort if len(arms) > 1 else effort[0], agent="off")
    log = rows(paired_runs(1_200, arms=arms, **UNEQUAL))
    pooled = armed(route).feed(log).settle().published[-1]
    assert pooled.level == len(arms)
    assert pooled.any_level == 0, "without its gains no effort keeps the budget"
    here = armed(route).feed(log)
    level = here.loop.level
    held = [in_full(), *paired_runs(200, first=1_200, arms=arms, **UNEQUAL)]
    here.feed(rows(held, first=20_000)).settle()
    assert served_drop(here, level) < ROUTE.max_em_drop < served_drop(here, level, full="maths"), "as was seen"
    made = here.published[-1]
    assert (made.level, made.certified) == (0, False)
    assert made.reason == "only level 0 is proved with classes at levels of their own"


def test_a_class_without_gains_may_be_held_in_full_and_a_lower_effort_counts_as_such() -> None:
    route = msgspec.structs.replace(ROUTE, agent="off")
    for override, mixture in ((in_full(), (("maths", (0,)),)), (in_full(kind="cap", level=1), (("maths", (1,)),))):
        here = armed(route).feed(rows(paired_runs(1_200, classes=("law", "maths"))))
        assert (here.loop.level, here.published[-1].any_level, here.published[-1].mixture) == (2, 2, ())
        more = paired_runs(200, first=1_200, classes=("law", "maths"))
        here.feed(rows([override, *more], first=20_000)).settle()
        made = here.published[-1]
        assert (made.level, made.mixture, made.any_level) == (2, mixture, 2)


def test_the_level_returns_when_the_override_ends() -> None:
    route = msgspec.structs.replace(ROUTE, agent="off")
    log = [*paired_runs(1_200, **UNEQUAL), in_full(), *paired_runs(200, first=1_200, **UNEQUAL)]
    end = OverrideEnd(route="r", number=1, reason="settled", author="ann", ended_at_s=0.0)
    here = armed(route).feed(rows([*log, end, *paired_runs(300, first=1_400, **UNEQUAL)])).settle()
    assert [made.level for made in here.published][-2:] == [0, 2]


def given(here: Story) -> dict[str, int]:
    """The level of each class by the latest plan; 0: mostly full runs."""
    plans = [one for one in here.settle().decided if isinstance(one, AgentPlan)]
    level = here.loop.level
    levels = {}
    for one in plans[-1].classes if plans else ():
        most = max(one.draws, key=lambda draw: draw.share)
        levels[one.query_class] = level if most.ceiling is None else min(level, most.ceiling)
    return levels


# In each class one of both arms is much cheaper.
APART = {("a", ARMS[0]): 80, ("a", ARMS[1]): 600, ("b", ARMS[0]): 700, ("b", ARMS[1]): 80}


def test_each_class_gets_the_arm_that_pays_there_once_the_mixture_is_proved() -> None:
    here = armed().feed(rows(paired_runs(2_000, classes=("a", "b"), tokens=APART)))
    assert given(here) == {"a": 1, "b": 2}
    plan = [one for one in here.decided if isinstance(one, AgentPlan)][-1]
    for query_class, arm in {"a": ARMS[0], "b": ARMS[1]}.items():
        one = plan.of_class(query_class)
        assert one is not None
        assert arm in describe_class_plan(one)
        assert "level" not in describe_class_plan(one), "a plan calls an effort by its name"
    assert "level" not in plan.reason


@pytest.mark.parametrize("checked", [True, False])
def test_a_mixture_that_breaks_the_budget_is_not_served_although_both_of_its_arms_are_proved(
    checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each arm loses 6 % in one class and nothing in the other, 3 % in all; together they would lose 6 %."""
    if not checked:
        monkeypatch.setattr(PairedEvidence, "_admits", lambda *_: True)
    lost = {("a", ARMS[0]): 0.06, ("b", ARMS[1]): 0.06}
    route = replace_route(max_em_drop=0.055, token_price=1.0)  # so dear that the agent would pay with answers
    here = armed(route).feed(rows(paired_runs(3_500, classes=("a", "b"), tokens=APART, lost=lost)))
    assert here.loop.level == 2
    assert (given(here) == {"a": 1, "b": 2}) is not checked
    if checked:
        assert len(set(given(here).values()) - {0}) == 1


@pytest.mark.parametrize("arms", [{"effort": ["medium", "low"]}, {"effort": "low"}, {"budget_tokens": 400}])
def test_the_job_writes_plans_where_the_owner_priced_tokens(arms: dict[str, Any], tmp_path: Path) -> None:
    """The price per run comes from counted tokens, which numpy sums: the row once could not be written."""
    table = {"upstream": "up", "kind": "reasoning", "mode": "enforce", "max_em_drop": 0.05, "token_price": 0.05, **arms}
    settings = parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "routes": {"r": table},
            "store": {"url": f"sqlite:///{tmp_path / 'log.db'}"},
        }
    )
    names = settings.routes["r"].arms
    fill(tmp_path, paired_runs(600 * len(names), arms=names))
    with open_worker(settings) as here:
        report = only(here)
    assert report.ok, report.summary
    decided = read_decided(tmp_path / "log.db").of("r")
    assert decided.level == len(names)
    assert decided.plan is not None
    assert decided.plan.token_price == pytest.approx(0.05 * 0.8)  # 800 tokens a full run


def replace_route(**changes: Any) -> Route:
    return msgspec.structs.replace(ROUTE, **changes)


# --------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"effort": ["low", "medium"]}, "from the most expensive to the cheapest"),
        ({"effort": ["low", "low"]}, "each level once"),
        ({"effort": []}, "at least one level"),
        ({"effort": ["high", "low"], "policy": {"policy": "never"}}, "go with no policy"),
        ({"effort": "low", "budget_tokens": 9}, "goes with no effort"),
        ({"effort": ["high", "little"]}, "allowed|'little'"),
    ],
)
def test_what_a_list_of_efforts_may_not_be(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_settings({"upstreams": {"up": {"url": "http://u"}}, "routes": {"r": {"upstream": "up", **fields}}})


def test_a_list_of_one_is_that_one() -> None:
    one, listed = (replace_route(effort=effort).arms for effort in ("low", ("low",)))
    assert one == listed == ("effort=low",)
