"""The certify loop as a fold over the log: what it decides follows from the rows alone; late words change the past."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from suffice.certification.certifier import KEPT_BEFORE
from suffice.certification.level_report import budget_at, summarize_evidence
from suffice.control.evidence.versions import read_back
from suffice.control.loop.epoch import ReplayMismatch
from suffice.control.loop.route_loop import RouteLoop
from suffice.errors import ConfigError
from suffice.settings import Control, Route
from suffice.store.rows.events import Event
from suffice.types import Alarm, EndReason, Epoch, LabelRequest, Outcome, Pause, Publication, Request, Resumption
from tests.control.made import BURST, CONTROL, ROUTE, Story, began, label, rows, run, story, traffic

LONG = 400


@pytest.fixture(scope="module")
def whole() -> Story:
    """A cold start and what follows, read in one go."""
    return story().feed(rows(traffic(LONG))).settle()


def same_state(a: RouteLoop, b: RouteLoop) -> bool:
    """Do two loops know the same, to the last bit?"""
    counts = [(one.n, one.level, one.certifier.version, [audit.id for audit in one.state.audits]) for one in (a, b)]
    levels = [one.certifier.served.levels if one.certifier.served else np.zeros(0) for one in (a, b)]
    return (
        counts[0] == counts[1]
        and np.array_equal(levels[0], levels[1])
        and np.array_equal(a.certifier.epoch.log_e, b.certifier.epoch.log_e)
    )


def test_nothing_is_decided_before_the_burst_is_over_and_then_a_level_is_certified(whole: Story) -> None:
    first = whole.published[0]
    assert first.at == BURST
    assert (first.epoch, first.number, first.certified, first.level > 0) == (1, 1, True, True)
    assert first.version == f"{first.fit}@{first.level}"
    assert first.evidence.n_audits == BURST - 2, "the last two may still be running"
    assert (first.evidence.window_start, first.evidence.window_share) == (1, 1)
    assert first.evidence.e_value is not None
    assert first.evidence.e_value >= 1 / (1 - ROUTE.confidence)
    assert (first.evidence.max_em_drop, first.setup, first.upstream) == (ROUTE.max_em_drop, "s1", (("m", "m", "fp"),))
    assert first.reason.startswith("fitted on 159 audits; level")


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("cut", [1, 333, 2 * BURST, 777])
def test_a_worker_that_was_killed_is_followed_by_one_that_decides_the_same(whole: Story, cut: int) -> None:
    log = rows(traffic(LONG))
    before = story().feed(log[:cut])
    after = story(expected=before.published, artefacts=before.artefacts).feed(log).settle()
    assert before.published + after.published == whole.published
    assert same_state(after.loop, whole.loop)


def test_a_replay_of_the_whole_log_reads_its_fits_and_comes_to_the_same(
    whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "suffice.control.loop.learned.fit_audited_version", lambda *_, **__: pytest.fail("fitted again")
    )
    until = 2 * (whole.published[-1].at + CONTROL.tick_requests - 1)
    again = story(expected=whole.published, artefacts=whole.artefacts).feed(rows(traffic(LONG))[:until])
    assert again.decided == []
    assert again.loop.level == whole.published[-1].level


def test_a_row_that_is_read_twice_counts_once(whole: Story) -> None:
    log = rows(traffic(LONG))
    again = story().feed(log[:300]).feed(log[100:300]).feed(log).settle()
    assert same_state(again.loop, whole.loop)


@pytest.mark.parametrize("change", [{"level": 7}, {"fit": "v-000000000000"}, {"at": BURST + 20}])
def test_a_log_that_says_otherwise_is_not_built_on(whole: Story, change: dict[str, Any]) -> None:
    wrong = [replace(whole.published[0], **change), *whole.published[1:]]
    with pytest.raises((ReplayMismatch, ConfigError)):
        story(expected=wrong, artefacts=whole.artefacts).feed(rows(traffic(LONG))).settle()


def test_what_is_served_is_what_was_certified(whole: Story) -> None:
    publication = whole.published[0]
    loaded = read_back(publication.fit, whole.artefacts[publication.fit])
    assert loaded.version.address == publication.fit
    with pytest.raises(ConfigError, match="what is kept under it is v-"):
        read_back("v-000000000000", whole.artefacts[publication.fit])
    for broken in (None, "no json", "[1]", "{}"):
        with pytest.raises(ConfigError):
            read_back(publication.fit, broken)


# ---------------------------------------------------------------- labels


def delivered(log: list[Event]) -> list[str]:
    """What each run answered."""
    return [event.answer or "" for event in log if isinstance(event, Outcome)]


def test_late_labels_in_any_order_end_in_the_same_certificate() -> None:
    log = traffic(260, seed=3, p_right=0.75)
    golds = [label(n, gold=answer) for n, answer in enumerate(delivered(log))]
    at_once = [event for pair in zip(log[::2], log[1::2], golds, strict=True) for event in pair]
    tail = traffic(40, seed=4, first=260)
    orders = [golds, golds[::-1], random.Random(1).sample(golds, len(golds))]
    owned = replace_route(label_timeout_s=30.0)  # else the delays that are learned differ, and with them the window
    late = [story(owned).feed(rows([*log, *order, *tail])).settle() for order in orders]
    assert same_state(late[0].loop, late[1].loop)
    assert same_state(late[0].loop, late[2].loop)
    early = story().feed(rows([*at_once, *tail])).settle()
    assert early.loop.n == late[0].loop.n == 300


def test_a_label_corrects_an_audit_that_counted_as_lost() -> None:
    log = traffic(200, seed=5, p_right=0.6)
    unlabelled = story().feed(rows([*log, *traffic(20, first=200)])).settle()
    labels = [label(n, gold="1000") for n in range(200)]  # every full run was wrong: no stop has lost anything
    labelled = story().feed(rows([*log, *labels, *traffic(20, first=200)])).settle()
    assert summarize_evidence(unlabelled.loop.certifier).n_lost > 0
    gain = labelled.loop.certifier.epoch.log_e[1:] - unlabelled.loop.certifier.epoch.log_e[1:]
    assert (gain >= 0).all()
    assert gain.max() > 5


@pytest.mark.slow
def test_the_last_word_of_a_reviewer_counts_whatever_the_order_of_clocks() -> None:
    log = traffic(180, seed=6, p_right=0.6)
    decisions = story().feed(rows(log)).settle().decided
    names = [int(event.episode_id.removeprefix("ep_")) for event in decisions if isinstance(event, LabelRequest)]
    assert names
    right = [label(n, gold="1000") for n in names]
    first_labels = [label(n, gold=delivered(log)[n]) for n in names]
    tail = traffic(20, first=180)
    changed_mind = story().feed(rows([*log, *first_labels, *right, *tail])).settle()
    at_once = story().feed(rows([*log, *right, *tail])).settle()
    assert np.array_equal(changed_mind.loop.certifier.epoch.log_e, at_once.loop.certifier.epoch.log_e)


def test_labels_are_asked_for_once_and_only_where_a_stop_in_play_disagrees(whole: Story) -> None:
    wanted = [event for event in whole.decided if isinstance(event, LabelRequest)]
    assert 0 < len(wanted) < 0.1 * LONG
    assert len({one.episode_id for one in wanted}) == len(wanted)
    assert all(one.would_answer != one.answer and 1 <= one.level <= whole.loop.level + 2 for one in wanted)
    assert whole.loop.settle() is None


# ---------------------------------------------------------------- what is no evidence, and what counts against


def test_every_turn_of_a_conversation_is_evidence_and_a_repeated_delivery_is_none() -> None:
    def talk(delivery: int) -> list[Event]:
        return [
            replace(
                event,
                conversation=f"talk-{n // 10}",
                unit=f"u{n // delivery}",
                delivery=1 + n // 2 % delivery,
            )
            if isinstance(event, Request)
            else event
            for n, event in enumerate(traffic(200, seed=7))
        ]

    assert len(story().feed(rows(talk(1))).loop.state.audits) == 200
    repeated = story().feed(rows(talk(2))).loop
    assert (repeated.n, len(repeated.state.audits)) == (200, 100)


def late(log: list[Event], after: int, which: Callable[[int], bool]) -> list[Event]:
    """The log with the ends of some runs so many requests later."""
    ends = [event for event in log if isinstance(event, Outcome)]
    begins = [event for event in log if isinstance(event, Request)]
    delayed = list[Event]()
    for n, begun in enumerate(begins):
        delayed.append(begun)
        delayed += [end for k, end in enumerate(ends) if k + (after if which(k) else 0) == n]
    return delayed


def test_audits_count_in_the_order_in_which_they_began_and_as_lost_until_they_return() -> None:
    log = traffic(180, seed=5)
    hard = {
        n
        for n, event in enumerate(event for event in log if isinstance(event, Outcome))
        if len({step.answer for step in event.steps}) > 1
    }
    assert len(hard) > 10
    at_once = story().feed(rows(log)).loop
    slow = story().feed(rows(late(log, 400, lambda n: n in hard))).loop
    assert at_once.level > 0
    assert slow.level == 0, "the easy ones alone prove nothing"
    assert summarize_evidence(slow.certifier, most=1).n_pending > 10
    ends = [event for event in log if isinstance(event, Outcome)]
    returned = [*late(log, 400, lambda n: n in hard), *(ends[n] for n in sorted(hard)), *traffic(20, first=180)]
    whole = story().feed(rows(returned)).loop
    assert [audit.at for audit in whole.state.audits] != sorted(audit.at for audit in whole.state.audits)
    assert whole.level > 0, "and once they have returned they are what they are"


@pytest.mark.parametrize("end", ["client_left", "internal_error", "shutdown", "lost"])
def test_an_audit_that_leaves_no_answer_is_lost_at_every_level(end: EndReason) -> None:
    log = traffic(180, seed=5, sure=True)
    broken = [
        replace(event, end_reason=end, answer=None) if isinstance(event, Outcome) and n < 120 else event
        for n, event in enumerate(log)
    ]
    assert story().feed(rows(log)).loop.level > 0
    loop = story().feed(rows(broken)).loop
    assert loop.level == 0
    assert summarize_evidence(loop.certifier, most=1).n_audits > 150


@pytest.mark.parametrize("end", ["upstream_error", "timeout"])
def test_a_full_run_to_which_its_upstream_gave_no_answer_is_no_evidence(end: EndReason) -> None:
    log = traffic(180, seed=5, sure=True)
    broken = [
        replace(event, end_reason=end, answer=None, steps=()) if isinstance(event, Outcome) and n < 60 else event
        for n, event in enumerate(log)
    ]
    loop = story().feed(rows(broken)).loop
    assert (len(loop.state.audits), loop.level > 0) == (150, True)


def test_runs_that_a_policy_could_have_stopped_are_no_evidence() -> None:
    live = story().feed(rows(traffic(60, audit=False, propensity=0.9)))
    assert (live.loop.n, live.loop.state.audits) == (60, [])
    ungoverned = story().feed(rows(traffic(60, ungoverned="tools")))
    assert (ungoverned.loop.n, ungoverned.loop.state.audits) == (0, [])
    observed = story().feed(rows(traffic(60, audit=False, propensity=0.9, mode="observe")))
    assert len(observed.loop.state.audits) == 60


def test_an_abandoned_audit_is_a_loss_and_its_lost_evidence_is_never_dropped() -> None:
    rng, log = random.Random(8), list[Event]()
    for number in range(240):
        request, outcome = run(number, rng, end_reason="client_left" if number % 4 == 0 else "done")
        log += [request, outcome]
    history = story().feed(rows(log)).settle()
    assert len(history.loop.state.audits) == 240
    assert history.loop.level == 0
    assert all(one.level == 0 and not one.certified for one in history.published)


def test_a_checkpoint_that_nobody_saw_counts_against_every_stop_behind_it() -> None:
    rng, log = random.Random(9), list[Event]()
    for number in range(240):
        request, outcome = run(number, rng, sure=True)
        steps = list(outcome.steps)
        if number % 4 == 0:
            steps[2] = replace(steps[2], answer=None, missing=True)
        log += [request, replace(outcome, steps=tuple(steps))]
    gaps = story().feed(rows(log)).settle()
    runs = gaps.loop.certifier.epoch.runs
    assert runs is not None
    first = slice(int(runs.starts[0]), int(runs.starts[1]))
    assert runs.z[first].tolist() == [0, 0, 1, 1, 1, 1, 1, 0]
    assert runs.d[first].tolist() == [False, False, True, True, True, True, True, False]


# ---------------------------------------------------------------- the brake


def changed_traffic(**changes: Any) -> list[Event]:
    return traffic(30, seed=11, first=LONG, **changes)


@pytest.mark.parametrize("changes", [{"model": "m-2"}, {"system_fingerprint": "fp-2"}, {"setup": "s2"}])
def test_another_world_behind_the_same_name_begins_an_epoch_at_once(whole: Story, changes: dict[str, Any]) -> None:
    history = story(expected=whole.published, artefacts=whole.artefacts)
    history.feed(rows([*traffic(LONG), *changed_traffic(**changes)]))
    alarm, epoch = history.decided
    assert isinstance(alarm, Alarm)
    assert isinstance(epoch, Epoch)
    assert (alarm.cause, alarm.epoch, alarm.at) == ("change", 1, LONG + 1)
    assert "changed from" in alarm.reason
    assert (epoch.number, epoch.since_seq, epoch.kept) == (2, 2 * LONG + 2, ())
    assert (history.loop.level, history.loop.held.level, history.loop.held.in_burst) == (0, 0, True)
    assert len(history.loop.state.audits) == 29


def test_a_name_that_nobody_asked_for_before_costs_no_burst_until_many_do(whole: Story) -> None:
    strangers = [
        replace(event, model="typo") if isinstance(event, Request) else event for event in changed_traffic(model="typo")
    ]
    quiet = story(expected=whole.published, artefacts=whole.artefacts).feed(rows([*traffic(LONG), *strangers]))
    assert quiet.decided == []


def test_two_versions_that_answer_side_by_side_are_one_world_once_both_were_seen() -> None:
    mixed = [
        replace(event, system_fingerprint=f"fp-{n % 4}") if isinstance(event, Outcome) else event
        for n, event in enumerate(traffic(LONG, seed=12))
    ]
    history = story().feed(rows(mixed)).settle()
    assert not any(isinstance(event, Epoch) for event in history.decided)
    assert history.published[0].upstream == (("m", "m", "fp-1"), ("m", "m", "fp-3"))


def test_a_model_that_answers_worse_under_the_same_name_is_noticed_by_its_audits(whole: Story) -> None:
    history = story(expected=whole.published, artefacts=whole.artefacts)
    history.feed(rows([*traffic(LONG), *traffic(300, seed=13, first=LONG, sure=False, p_right=0.45)]))
    alarm = next(event for event in history.decided if isinstance(event, Alarm))
    assert alarm.cause in ("outcomes", "disagreement", "signals")
    assert alarm.at <= LONG + 200


def test_signals_that_moved_keep_the_latest_audits_and_a_new_worker_keeps_the_same() -> None:
    quick = replace_control(refit_requests=100_000)
    calm = traffic(1_600, seed=14)
    moved = [
        replace(event, steps=tuple(replace(s, tokens=s.tokens * 9) for s in event.steps))
        if isinstance(event, Outcome)
        else event
        for event in traffic(600, seed=15, first=1_600)
    ]
    history = story(control=quick).feed(rows([*calm, *moved]))
    epoch = next(event for event in history.decided if isinstance(event, Epoch))
    assert len(epoch.kept) == KEPT_BEFORE - 1, "at a look the latest request has not ended"
    assert next(event.cause for event in history.decided if isinstance(event, Alarm)) == "signals"


def test_signals_that_moved_keep_the_audits_of_the_last_requests_and_not_so_many_audits() -> None:
    """One request in four is an audit: three hundred requests hold seventy-five."""
    rng, log = random.Random(21), list[Event]()
    for number in range(2_200):
        thin = number >= BURST and number % 4 > 0
        request, outcome = run(number, rng, sure=True, audit=not thin, propensity=0.75 if thin else 0.25)
        if number >= 1_600:
            outcome = replace(outcome, steps=tuple(replace(s, tokens=s.tokens * 9) for s in outcome.steps))
        log += [request, outcome]
    history = story(control=replace_control(refit_requests=100_000)).feed(rows(log))
    alarm = next(event for event in history.decided if isinstance(event, Alarm))
    epoch = next(event for event in history.decided if isinstance(event, Epoch))
    assert alarm.cause == "signals"
    last = range(alarm.at - KEPT_BEFORE, alarm.at)
    assert list(epoch.kept) == [f"ep_{number:05}" for number in last if number % 4 == 0]
    assert len(epoch.kept) == KEPT_BEFORE // 4


def replace_control(**changes: Any) -> Control:
    return msgspec.structs.replace(CONTROL, **changes)


def test_a_lottery_that_forgets_audits_pauses_enforcement_until_a_person_decides(whole: Story) -> None:
    history = story(expected=whole.published, artefacts=whole.artefacts)
    rng, log = random.Random(16), list[Event]()
    for number in range(LONG, LONG + 400):  # one in ten was to be audited, and none is
        request, outcome = run(number, rng, audit=False, propensity=0.9)
        log += [request, outcome]
    history.feed(rows([*traffic(LONG), *log])).settle()
    pause = next(event for event in history.decided if isinstance(event, Pause))
    assert (pause.cause, pause.number) == ("sample_ratio", 1)
    assert "where 440 were expected" in pause.reason
    assert history.loop.held.level == 0
    assert history.loop.settle() is None, "one pause is enough"
    over = Resumption(route="r", number=1, reason="sampler mended", author="ann")
    history.feed(rows([over], first=2 * LONG + 801))
    assert history.loop.held.level > 0


def test_an_em_below_the_critical_one_pauses_and_its_end_counts_anew(whole: Story) -> None:
    strict = replace_route(critical_em=0.8)
    labels = [label(n, correct=n % 2 == 0) for n in range(60)]
    history = story(strict, expected=whole.published, artefacts=whole.artefacts)
    history.feed(rows([*traffic(LONG), *labels])).settle()
    pause = next(event for event in history.decided if isinstance(event, Pause))
    assert pause.cause == "critical_em"
    assert "50.0% over the last 60 labels" in pause.reason
    over = Resumption(route="r", number=1, reason="known outage", author="ann")
    history.feed(rows([over, label(61, correct=True)], first=2 * LONG + 61)).settle()
    assert history.loop.held.pause is None
    fine = [label(n, correct=n % 10 > 0) for n in range(60)]
    calm = story(strict, expected=whole.published, artefacts=whole.artefacts)
    calm.feed(rows([*traffic(LONG), *fine])).settle()
    assert not any(isinstance(event, Pause) for event in calm.decided)


def replace_route(**changes: Any) -> Route:
    return msgspec.structs.replace(ROUTE, **changes)


def test_another_promise_keeps_the_audits_and_certifies_anew_without_a_burst(whole: Story) -> None:
    stricter = replace_route(max_em_drop=0.02)
    history = story(stricter, held=began(), expected=whole.published, artefacts=whole.artefacts)
    history.feed(rows(traffic(LONG))).settle()
    (event,) = history.decided
    assert isinstance(event, Epoch)
    assert (event.max_em_drop, event.burst, len(event.kept)) == (0.02, 0, LONG)
    history.feed(rows(traffic(20, seed=17, first=LONG), first=2 * LONG + 1))
    (published,) = [event for event in history.decided if isinstance(event, Publication)]
    assert published.at == LONG + 20
    assert published.evidence.max_em_drop == 0.02
    assert published.level < whole.loop.level


def test_a_route_of_thoughts_is_not_certified_before_its_finish_was_measured() -> None:
    thoughts = replace_route(kind="reasoning", samples=1)
    log = [
        replace(event, kind="reasoning", n_samples=1) if isinstance(event, Request) else event
        for event in traffic(240, seed=18)
    ]
    history = story(thoughts).feed(rows(log)).settle()
    assert history.loop.certifier.served is not None
    assert {(one.level, one.certified) for one in history.published} == {(0, False)}
    assert "the finish was never compared" in history.published[0].reason


@pytest.mark.parametrize("n_changed", [0, 40])
def test_what_finishing_may_change_is_taken_off_the_budget(n_changed: int) -> None:
    thoughts = replace_route(kind="reasoning", samples=1, max_em_drop=0.12)
    log = list[Event]()
    for number, event in enumerate(traffic(240, seed=19, sure=True)):
        if isinstance(event, Request):
            log.append(replace(event, kind="reasoning", n_samples=1))
        elif isinstance(event, Outcome):
            answer = event.answer if number >= 2 * n_changed else "another"
            log.append(replace(event, finish_step=4, finish_answer=answer))
    history = story(thoughts).feed(rows(log)).settle()
    assert history.loop.state.epoch.max_em_drop == 0.12
    certificate = history.loop.certifier.epoch.certificate
    assert certificate is not None
    charge = history.loop.certifier.plan.max_em_drop - budget_at(certificate, 1)
    if n_changed:
        assert history.published[-1].level == 0
        assert "use up the budget" in history.published[-1].reason
    else:
        assert 0.01 < charge < 0.05
        assert history.published[-1].level > 0
        tested, left = (
            history.published[-1].evidence.max_em_drop,
            budget_at(certificate, history.published[-1].level),
        )
        assert tested is not None
        assert left - 0.01 < tested <= left < 0.11, "what is promised to a gateway is what was tested, some audits ago"


def test_a_saving_that_live_stops_correct_is_announced_anew_and_a_replay_knows_it() -> None:
    thoughts = replace_route(kind="reasoning", samples=1, max_em_drop=0.12)
    log = list[Event]()
    for event in traffic(240, seed=19, sure=True):
        if isinstance(event, Request):
            log.append(replace(event, kind="reasoning", n_samples=1))
        elif isinstance(event, Outcome):
            log.append(replace(event, finish_step=4, finish_answer=event.answer))
    before = story(thoughts).feed(rows(log)).settle()
    active, rng = before.published[-1], random.Random(20)
    assert active.level > 0
    for number in range(240, 400):
        request, outcome = run(number, rng, sure=True, audit=False, propensity=0.05, certified=True)
        assert outcome.usage is not None
        slow = replace(outcome.usage, completion_tokens=outcome.usage.completion_tokens - 120)
        log.append(replace(request, kind="reasoning", n_samples=1, policy_version=active.version))
        stop = replace(outcome, stopped=True, stop_step=2, would_answer=outcome.answer, end_reason="stopped")
        log.append(replace(stop, steps=outcome.steps[:2], usage=slow))
    whole = story(thoughts).feed(rows(log)).settle()
    again, announced = whole.published[-1], active.evidence.share
    assert (again.level, again.fit) == (active.level, active.fit)
    assert again.reason == "it saves another share than announced"
    assert announced is not None
    assert again.evidence.share is not None
    assert 0 <= again.evidence.share < announced - 0.02
    replayed = story(thoughts, expected=whole.published, artefacts=whole.artefacts).feed(rows(log)).settle()
    assert replayed.published == []
    assert replayed.loop.held.publication == again
