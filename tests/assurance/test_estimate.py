"""A report says what was measured, compares only what may be compared, and admits the rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.estimate import MIN_AUDITS, RouteReport, report_of
from suffice.assurance.runs import MOST_CALLERS, CallerAudits, Tally, current_label, describe_left, measure_run
from suffice.assurance.sampling import UnloggedRequests
from suffice.types import Episode, Feedback, Outcome, Overhead, StepRecord, UpstreamCall, Usage
from tests.assurance.reports import estimate_route
from tests.drawn import examples
from tests.records import plain_request, plain_step

_numbers = itertools.count()


@dataclass(frozen=True)
class Label:
    seq: int
    feedback: Feedback


@dataclass(frozen=True)
class Labelled:
    episode: Episode
    labels: tuple[Label, ...]


def near(value: float) -> Any:
    """Equal but for rounding, also inside a tuple."""
    return pytest.approx(value)


def said(seq: int = 1, **fields: Any) -> Label:
    return Label(seq, Feedback(feedback_id=f"f{seq}", **fields))


def run(*labels: Label, request: dict[str, Any] | None = None, n_tokens: int | None = 100, **outcome: Any) -> Labelled:
    """One run; without arguments a governed, finished, unlabelled run in observe."""
    name = f"e{next(_numbers)}"
    requested = {"route": "math", "propensity": 0.9, "policy_version": "v1", "certified": True, "question_key": name}
    usage = None if n_tokens is None else Usage(prompt_tokens=50, completion_tokens=n_tokens)
    happened: dict[str, Any] = {
        "episode_id": name,
        "end_reason": "done",
        "status": 200,
        "answer": "4",
        "response_id": None,
        "usage": usage,
    }
    episode = Episode(
        request=plain_request(name, **requested | (request or {})), outcome=Outcome(**(happened | outcome))
    )
    return Labelled(episode, labels)


def live(*labels: Label, n_tokens: int | None = 60, request: Mapping[str, Any] = {}, **outcome: Any) -> Labelled:
    """A live run, stopped unless said otherwise, 40 tokens before its end."""
    is_stopped = outcome.get("stopped", True)
    return run(
        *labels,
        request={"mode": "enforce", **request},
        n_tokens=n_tokens,
        **({"stopped": True, "end_reason": "stopped", "tokens_saved_estimate": 40 if is_stopped else None} | outcome),
    )


def audit(*labels: Label, n_tokens: int | None = 100, **outcome: Any) -> Labelled:
    request = {"mode": "enforce", "audit": True, "propensity": 0.1}
    return run(*labels, request=request, n_tokens=n_tokens, **outcome)


def step(index: int, tokens: int, probe_tokens: int = 0) -> StepRecord:
    return plain_step(index, tokens=tokens, probe_tokens=probe_tokens)


def report(episodes: Iterable[Labelled], **options: Any) -> RouteReport:
    match = lambda answer, gold: answer == gold
    return estimate_route(episodes, route="math", match=match, **options)


def test_an_empty_route_measures_nothing_and_promises_nothing() -> None:
    nothing = report([])
    measured = nothing.measured
    assert nothing.n_requests == nothing.n_governed == 0
    assert nothing.governed_share is None
    assert not nothing.certified
    assert {getattr(measured, name) for name in measured.__dataclass_fields__} == {None}


def test_requests_are_counted_by_what_happened_to_them() -> None:
    result = report(
        [
            run(),
            run(end_reason="client_left", degraded=("policy",)),
            run(request={"ungoverned": "tools"}),
            run(request={"ungoverned": "tools"}),
            run(request={"ungoverned": "n > 1"}),
            live(),
            audit(),
        ],
    )
    assert (result.n_requests, result.n_governed, result.n_audits, result.n_stopped) == (7, 4, 1, 1)
    assert result.governed_share == near(4 / 7)
    assert result.ungoverned == {"tools": 2, "n > 1": 1}
    assert result.end_reasons == {"done": 5, "client_left": 1, "stopped": 1}
    assert result.modes == ("observe", "enforce")
    assert result.degraded == {"policy": 1}
    assert result.certified


def test_one_uncertified_request_makes_the_route_uncertified() -> None:
    assert not report([run(), run(request={"certified": False})]).certified
    assert report([run(), run(request={"certified": False, "ungoverned": "tools"})]).certified


def test_exact_match_counts_labels_and_no_answer_is_a_wrong_answer() -> None:
    result = report(
        [
            run(said(correct=True)),
            run(said(correct=False)),
            run(said(gold="4")),
            run(said(gold="5")),
            run(said(gold="4"), answer=None),
            run(said(gold="4"), answer=None, end_reason="upstream_error"),
            run(said(thumbs="up", rating=5)),
            run(),
            run(said(gold="4"), end_reason="lost", answer=None),
        ]
    )
    em = result.measured.em_full
    assert em is not None
    assert (em.value, em.n) == (near(2 / 6), 6)
    assert em.low is not None
    assert em.high is not None
    assert em.low <= em.value <= em.high
    assert result.n_labelled == 6
    assert result.measured.em_live is None
    assert result.measured.em_stopped is None


def test_audits_are_the_full_runs_and_live_runs_that_ran_to_the_end_are_not() -> None:
    ran_on: dict[str, Any] = {"stopped": False, "end_reason": "done"}
    result = report(
        [
            audit(said(correct=True)),
            audit(said(correct=False)),
            live(said(correct=True)),
            live(said(correct=False), **ran_on),
            live(said(correct=False), **ran_on),
        ]
    ).measured
    assert result.em_full is not None
    assert result.em_stopped is not None
    assert result.em_live is not None
    assert (result.em_full.value, result.em_full.n) == (0.5, 2)
    assert (result.em_stopped.value, result.em_stopped.n) == (1.0, 1)
    assert (result.em_live.value, result.em_live.n) == (near(1 / 3), 3)


LABELS = [said(1, correct=False), said(2, gold="4"), said(3, thumbs="down"), said(9, rating=1)]


@given(order=st.permutations(LABELS))
@settings(max_examples=examples(24))
def test_the_last_label_received_wins_and_a_thumb_is_no_label(order: list[Label]) -> None:
    label = current_label(order)
    assert label is not None
    assert label.gold == "4"
    em = report([run(*order)]).measured.em_full
    assert em is not None
    assert em.value == 1.0


def test_saving_is_the_sum_of_the_runs_with_probes_and_discarded_tokens_as_spent() -> None:
    overhead = Overhead(probe_tokens=7, discarded_tokens=3, extra_prompt_tokens=200, cached_prompt_tokens=160)
    episodes = [
        *(live(n_tokens=50, overhead=overhead) for _ in range(60)),
        *(live(n_tokens=100, stopped=False, end_reason="done") for _ in range(20)),
        *(audit(n_tokens=90 + 20 * (i % 2), overhead=Overhead(probe_tokens=40)) for i in range(40)),
        *(live(n_tokens=None, end_reason="upstream_error") for _ in range(5)),
        *(run(n_tokens=900) for _ in range(30)),  # observed earlier: no part of this comparison
    ]
    result = report(episodes).measured
    saving, saved, spent = result.saving, 60 * 40 - 40 * 40, 60 * 60 + 20 * 100 + 40 * 140
    assert saving is not None
    assert (saving.value, saving.n) == (near(saved / (saved + spent)), 40)
    assert result.saved_tokens is not None
    assert result.saved_tokens.value == near(saved)
    own = 60 * 10 + 40 * 40
    assert result.gross_saving == near((saved + own) / (saved + spent)), (
        "before what was spent on probes and hand-overs"
    )
    assert saving.note is None
    assert saving.low is not None
    assert saving.high is not None
    assert saving.low < saving.value < saving.high
    assert saving.high - saving.low < 0.15
    assert report(episodes) == report(episodes), "the same runs give the same report"


def test_the_interval_holds_what_the_audits_say_also_if_their_share_moved() -> None:
    def phase(rho: float, n_audits: int, n_live: int, scale: int, *, off: bool = False) -> list[Labelled]:
        drawn = {"mode": "enforce", "audit": True, "propensity": rho}
        rest = {"mode": "enforce", "propensity": 1 - rho}
        return [
            *(run(request=drawn, n_tokens=100 * scale) for _ in range(n_audits)),
            *(
                live(request=rest, n_tokens=60 * scale, tokens_saved_estimate=90 * scale if off else 40 * scale)
                for _ in range(n_live)
            ),
        ]

    # Longer questions came while the share was smaller; every run that is no audit saves 40 %.
    truth = 0.4 * (100 * 100 + 180 * 500) / (200 * 100 + 200 * 500)
    saving = report([*phase(0.5, 100, 100, 1), *phase(0.1, 20, 180, 5)]).measured.saving
    assert saving is not None
    assert saving.value == near(truth)
    too_high = report([*phase(0.5, 100, 100, 1, off=True), *phase(0.1, 20, 180, 5, off=True)]).measured.saving
    assert too_high is not None
    assert too_high.low is not None
    assert too_high.low <= truth < too_high.value == too_high.high, "estimates that are too high widen it"


def test_too_few_audits_are_named_and_get_no_interval() -> None:
    episodes = [live() for _ in range(50)] + [audit() for _ in range(MIN_AUDITS - 1)]
    few = report(episodes).measured.saving
    assert few is not None
    assert (few.value, few.low, few.high) == (near(0.4 * 50 / (50 + MIN_AUDITS - 1)), None, None)
    assert few.note == f"not enough audits: {MIN_AUDITS - 1} of {MIN_AUDITS}"
    alone = report([live() for _ in range(50)]).measured.saving
    assert alone is not None
    assert (alone.value, alone.low, alone.n) == (near(0.4), None, 0)


def test_a_stop_without_an_estimate_saved_nothing_that_is_known_and_that_is_said() -> None:
    episodes = [*(live() for _ in range(30)), *(live(tokens_saved_estimate=None) for _ in range(3))]
    result = report([*episodes, *(audit() for _ in range(30))]).measured.saving
    assert result is not None
    assert result.value == near(30 * 40 / (30 * 40 + 33 * 60 + 30 * 100))
    assert result.note == "3 stopped runs without an estimate count as 0"


def test_observing_says_what_a_stop_would_have_saved_in_the_same_runs() -> None:
    steps = (step(1, 20, 5), step(2, 30, 5), step(3, 40, 5))
    result = report(
        [
            run(steps=steps, stop_step=2, would_answer="4"),  # 10 tokens of answer come after the thought
            run(steps=steps, stop_step=None),
            run(steps=steps, stop_step=1, would_answer="5", end_reason="client_left"),  # shows no full run
        ]
    )
    would = result.measured.would_save
    assert would is not None
    assert would.n == 2
    assert would.value == near(1 - ((100 - 40 + 10) + (100 + 15)) / 200)
    assert result.n_would_stop == 2
    assert result.measured.saving is None


def test_labels_that_come_more_often_where_answers_agree_or_differ_do_not_move_the_drop() -> None:
    differing = [run(said(gold="4"), stop_step=1, would_answer="5") for _ in range(3)]
    for n_labelled in (0, 10, 97):
        marked = [run(said(gold="4"), stop_step=1, would_answer="4") for _ in range(n_labelled)]
        agreeing = [*marked, *(run(stop_step=1, would_answer="4") for _ in range(97 - n_labelled))]
        drop = report([*agreeing, *differing]).measured.em_drop
        assert drop is not None
        assert drop.value == near(0.03)
        assert drop.low is not None
        assert drop.high is not None
        assert drop.low < 0.03 < drop.high


def test_disagreement_and_the_paired_drop_count_lost_and_gained_apart() -> None:
    result = report(
        [
            run(said(gold="4"), stop_step=1, would_answer="4"),
            run(said(gold="4"), stop_step=1, would_answer="5"),  # lost
            run(said(gold="5"), stop_step=1, would_answer="5"),  # gained
            run(said(gold="9"), stop_step=1, would_answer=None),  # wrong either way
            run(said(correct=True), stop_step=1, would_answer="5"),  # differs from what was right: lost
            run(said(correct=False), stop_step=1, would_answer="5"),  # nobody judged it: not gained
            run(said(gold="4")),  # the policy did not stop
            run(stop_step=1, would_answer="5"),  # no label: disagreement only
        ]
    ).measured
    assert result.disagreement is not None
    assert (result.disagreement.value, result.disagreement.n) == (near(6 / 8), 8)
    assert result.em_drop is not None
    assert (result.em_drop.value, result.em_drop.n) == (near((2 + 1 - 1) / 8), 8), "without a label it counts as lost"
    assert result.em_drop.note is not None
    assert (result.n_lost, result.n_gained) == (2, 1)


def test_a_time_out_of_a_full_run_is_no_loss_of_a_stop() -> None:
    answered = [audit(said(correct=True), answer="1") for _ in range(40)]
    silent = [audit(answer=None, end_reason="timeout", n_tokens=None) for _ in range(10)]
    got = report([*answered, *silent])
    assert (got.n_abandoned_audits, got.measured.n_lost) == (0, 0)
    assert got.measured.em_drop is not None
    assert got.measured.em_drop.value == 0.0


def test_an_abandoned_audit_counts_as_a_loss() -> None:
    gone = audit(end_reason="client_left", answer=None, n_tokens=10)
    alone = report([gone, audit()])
    assert alone.n_abandoned_audits == 1
    assert alone.measured.n_lost == 1
    assert alone.measured.disagreement is not None
    assert alone.measured.disagreement.value == 0.5
    beside = report([gone, audit(said(gold="4"))]).measured
    assert beside.em_drop is not None
    assert (beside.em_drop.value, beside.n_lost) == (0.5, 1)


def test_an_audit_that_was_read_to_its_end_counts_as_what_it_showed_whoever_left() -> None:
    unread = audit(end_reason="client_left", finished_unread=True)
    got = report([unread, audit(), audit(end_reason="client_left", answer=None, n_tokens=10)])
    assert got.n_abandoned_audits == 1
    assert got.leavers == (CallerAudits(caller="", n_audits=3, n_left=2, n_finished_unread=1, n_lost=1),)
    assert got.measured.disagreement is not None
    assert (got.measured.disagreement.value, got.measured.disagreement.n) == (near(1 / 3), 3)


def of(caller: str, **outcome: Any) -> Labelled:
    item = audit(**outcome)
    return replace(item, episode=replace(item.episode, request=replace(item.episode.request, sender=caller)))


def test_audits_are_counted_by_caller_and_a_full_table_still_names_those_who_leave() -> None:
    gone: dict[str, Any] = {"end_reason": "client_left", "answer": None, "n_tokens": 10}
    crowd = [of(f"c{number}") for number in range(MOST_CALLERS + 50)]
    got = report([*crowd, of("c0"), of("late"), of("late", **gone), of("late"), of("c0", end_reason="asked")])
    assert got.leavers == (
        CallerAudits(caller="c0", n_audits=3, n_left=1, n_lost=1),
        CallerAudits(caller="late", n_audits=2, n_left=1, n_lost=1),
    )
    everybody = report([of(f"c{number}", **gone) for number in range(MOST_CALLERS + 50)])
    assert len(everybody.leavers) == MOST_CALLERS
    assert everybody.n_abandoned_audits == MOST_CALLERS + 50, "losses count whoever is named"


@pytest.mark.parametrize(
    "requested", [{"audit": False}, {"delivery": 2}, {"ungoverned": "off"}, {"mode": "observe", "audit": False}]
)
def test_what_is_no_audit_is_left_by_nobody(requested: dict[str, Any]) -> None:
    item = run(request={"mode": "enforce", "audit": True, **requested}, end_reason="client_left")
    assert describe_left(item.episode.request, item.episode.outcome) is None


labelled_runs = st.builds(
    lambda gold, answer, would, stop: run(said(gold=gold), answer=answer, would_answer=would, stop_step=stop),
    st.sampled_from("ab"),
    st.sampled_from(["a", "b", None]),
    st.sampled_from(["a", "b", None]),
    st.sampled_from([None, 1]),
)


@given(episodes=st.lists(labelled_runs, min_size=1, max_size=12))
@settings(max_examples=examples(60))
def test_the_drop_never_exceeds_the_disagreement(episodes: list[Labelled]) -> None:
    result = report(episodes).measured
    assert result.em_drop is not None
    assert result.disagreement is not None
    assert result.em_drop.value <= result.disagreement.value + 1e-12


def test_every_token_stands_in_its_category_and_unknown_usage_is_said() -> None:
    overhead = Overhead(probe_tokens=1, extra_prompt_tokens=20, cached_prompt_tokens=10, discarded_tokens=4)
    usage = Usage(prompt_tokens=50, completion_tokens=100, cached_tokens=30)
    tokens = report([run(usage=usage, overhead=overhead), run(n_tokens=None), run()]).tokens
    assert (tokens.client_prompt, tokens.client_cached, tokens.client_completion) == (100, 30, 200)
    assert (tokens.probe, tokens.extra_prompt, tokens.cached_prompt, tokens.discarded) == (1, 20, 10, 4)
    assert tokens.n_unknown == 1


def test_money_is_compared_and_added_up_at_the_prices_of_its_time() -> None:
    # 60 live runs at 4 cents and 30 audits at 10 cents, 2 of them for probes that a full run does not need.
    result = report(
        [
            *(live(cost_usd=0.04, overhead_usd=0.01, saved_usd_estimate=0.04) for _ in range(60)),
            *(audit(cost_usd=0.10, overhead_usd=0.02) for _ in range(30)),
            run(request={"mode": "enforce", "ungoverned": "tools"}, cost_usd=1.0),
            live(),  # from before there were prices
        ]
    )
    measured, money = result.measured, result.money
    assert money.governed_usd == near(60 * 0.04 + 30 * 0.10)
    assert money.overhead_usd == near(60 * 0.01 + 30 * 0.02)
    assert (money.ungoverned_usd, money.n_known, money.n_unknown) == (1.0, 91, 1)
    assert measured.cost_full is not None
    assert (measured.cost_full.value, measured.cost_full.n) == (near(0.08), 30)
    assert measured.cost_stopped is not None
    assert (measured.cost_stopped.value, measured.cost_stopped.n) == (near(0.04), 60)
    assert measured.cost_reduction is not None
    assert measured.cost_reduction.value == near(1 - (60 * 0.04 + 30 * 0.10) / (90 * 0.08))
    assert measured.saved_usd is not None
    # All 90 in full, without probes, less all that was spent.
    assert measured.saved_usd.value == near(90 * 0.08 - (60 * 0.04 + 30 * 0.10))
    assert measured.saved_usd.low is not None
    assert measured.saved_usd.high is not None
    assert measured.saved_usd.low <= measured.saved_usd.value <= measured.saved_usd.high
    assert measured.would_save_usd is None


def test_a_route_can_lose_money_and_says_so() -> None:
    stopped = [live(cost_usd=0.05, saved_usd_estimate=-0.01) for _ in range(30)]
    result = report([*stopped, *(audit(cost_usd=0.04) for _ in range(30))])
    assert result.measured.saved_usd is not None
    assert result.measured.saved_usd.value == near(-0.30)
    assert result.measured.cost_reduction is not None
    assert result.measured.cost_reduction.value < 0


def test_observing_says_what_money_a_stop_would_have_saved() -> None:
    result = report(
        [
            run(stop_step=1, would_answer="4", cost_usd=0.10, would_cost_usd=0.03),
            run(stop_step=1, would_answer="4", cost_usd=0.10),  # handing over has no known price
            run(cost_usd=0.20),  # the policy did not stop
            run(stop_step=1, would_answer="4", cost_usd=0.10, would_cost_usd=0.03, end_reason="client_left"),
        ]
    ).measured
    assert result.would_save_usd is not None
    assert (result.would_save_usd.value, result.would_save_usd.n) == (near(0.07), 2)
    assert result.saved_usd is None


def test_without_prices_no_money_is_made_up() -> None:
    result = report([live(), audit(), run()])
    measured = result.measured
    assert measured.cost_full is measured.cost_stopped is measured.cost_reduction is None
    assert measured.saved_usd is measured.would_save_usd is None
    assert (result.money.governed_usd, result.money.n_known, result.money.n_unknown) == (0.0, 0, 3)


def vote(drawn: tuple[str | None, ...], *labels: Label, n_samples: int = 9, **changes: Any) -> Labelled:
    """A vote in observe over samples of 10 tokens each; one that was launched and cancelled had 5."""
    n = len(drawn)
    votes = {answer: drawn.count(answer) for answer in drawn if answer is not None}
    call = UpstreamCall(
        purpose="sample", prompt_tokens=50, cached_tokens=0, completion_tokens=10, source="provider", cancelled=False
    )
    happened: dict[str, Any] = {
        "steps": tuple(replace(step(at + 1, 10), answer=answer) for at, answer in enumerate(drawn)),
        "vote": tuple(sorted(votes.items(), key=lambda each: -each[1])),
        "calls": (*[call] * n, replace(call, completion_tokens=5, cancelled=True)),
        "overhead": Overhead(extra_prompt_tokens=50 * n, n_extra_calls=n),
        "cost_usd": 0.6,
    }
    request = {"kind": "samples", "n_samples": n_samples, **changes.pop("request", {})}
    return run(*labels, request=request, n_tokens=10 * n + 5, **(happened | changes))


def test_savings_of_a_decided_vote_are_measured_against_the_vote_over_all_its_samples() -> None:
    measured = report([vote(("4",) * 5)]).measured
    assert measured.tokens_full is not None
    assert measured.tokens_full.value == near(90), "all samples, those not drawn estimated"
    assert measured.decided_saving is not None
    assert measured.decided_saving.value == near(1 - 55 / 90)
    assert "not drawn" in measured.decided_saving.method
    assert measured.would_save is not None
    assert measured.would_save.value == near(1 - 55 / 90), "nothing more: no policy would have stopped it"
    stopped = report([vote(("4",) * 5, stop_step=4, would_answer="4")]).measured.would_save
    assert stopped is not None
    assert stopped.value == near(1 - 45 / 90)


def test_a_decided_vote_saved_the_samples_that_were_not_drawn() -> None:
    drawn = {"mode": "enforce", "audit": True, "propensity": 0.5}
    lived = {"mode": "enforce", "propensity": 0.5}
    cast: dict[str, Any] = {"overhead_usd": 0.0}
    result = report([vote(("4",) * 5, request=drawn, **cast), vote(("4",) * 5, request=lived, **cast)]).measured
    assert result.saving is not None
    assert result.saving.value == near(1 - 55 / 90)
    # Money counts what was launched: nine samples for six.
    assert result.cost_reduction is not None
    assert result.cost_reduction.value == near(1 - 0.6 / 0.9)


@pytest.mark.parametrize(
    "whole",
    [
        vote(("4", "5", "4", "5", "6"), n_samples=5),  # all were drawn
        vote(("4",), n_samples=8),  # the temperature was 0, or the upstream was busy
        vote((None, None), n_samples=8),  # nobody voted before the upstream gave up
        vote(("4",) * 4, stopped=True, end_reason="stopped"),  # the policy's own saving is told elsewhere
    ],
)
def test_nothing_is_called_saved_where_no_decided_vote_ended_early(whole: Labelled) -> None:
    assert report([whole]).measured.decided_saving is None


def test_a_label_of_a_decided_vote_counts_where_its_steps_are_not_kept() -> None:
    whole = vote(("4",) * 5, said(correct=True))
    slim = replace(whole, episode=replace(whole.episode, outcome=replace(whole.episode.outcome, steps=())))
    match = lambda answer, gold: answer == gold
    assert measure_run(slim, match).correct is measure_run(whole, match).correct is True


def tallied(episodes: Iterable[Labelled]) -> Tally:
    tally = Tally()
    for item in episodes:
        tally.n_begun += 1
        tally.add(item.episode.request, item.episode.outcome, measure_run(item, lambda answer, gold: answer == gold))
    return tally


def test_a_late_label_exchanges_what_its_run_said_and_nothing_else() -> None:
    match = lambda answer, gold: answer == gold
    bare = run(stop_step=1, would_answer="5")
    reported = Labelled(bare.episode, (said(gold="4"),))
    late = tallied([bare, audit()])
    late.relabel(measure_run(bare, match), measure_run(reported, match))
    assert report_of(late, route="math") == report_of(tallied([reported, audit()]), route="math")


def test_a_tally_that_was_kept_is_the_same() -> None:
    tally = tallied([*(live(said(gold="4")) for _ in range(30)), *(audit(cost_usd=0.1) for _ in range(30)), run()])
    kept = msgspec.json.decode(msgspec.json.encode(tally), type=Tally)
    assert report_of(kept, route="math") == report_of(tally, route="math")


def test_requests_without_rows_are_counted_whole() -> None:
    tally = tallied([audit()])
    tally.add_unkept(
        UnloggedRequests(
            query_class="",
            version="v",
            ungoverned="",
            n=9,
            ends=(("stopped", 9),),
            n_stopped=9,
            n_counted=8,
            completion_tokens=70,
            n_priced=9,
            cost_usd=0.9,
            overhead_usd=0.1,
        )
    )
    tally.add_unkept(
        UnloggedRequests(
            query_class="", version="v", ungoverned="tools", n=3, ends=(("done", 3),), cost_usd=0.3, n_priced=3
        )
    )
    result = report_of(tally, route="math")
    assert (tally.n_begun, result.n_requests, result.n_governed, result.n_stopped) == (13, 13, 10, 9)
    assert (result.ungoverned, result.end_reasons) == ({"tools": 3}, {"done": 4, "stopped": 9})
    assert (result.tokens.client_completion, result.tokens.n_unknown) == (170, 1)
    assert (result.money.governed_usd, result.money.ungoverned_usd, result.money.n_known) == (0.9, 0.3, 12)


def test_questions_asked_again_and_again_tell_less() -> None:
    alike = {"mode": "enforce", "audit": True, "propensity": 0.5, "question_key": "q"}
    same = [*(live() for _ in range(30)), *(run(request=alike) for _ in range(30))]
    result = report(same).measured.saving
    assert result is not None
    assert (result.low, result.note) == (None, "audits of too few questions or routes for an interval")


@pytest.mark.parametrize("late", ["user", "exact-match", "judge"])
def test_no_later_label_of_a_less_trusted_source_outranks_a_reviewers(late: str) -> None:
    labels = [said(1, correct=True, source="reviewer"), said(2, correct=False, source=late)]
    label = current_label(labels)
    assert label is not None
    assert label.source == "reviewer"
    em = report([run(*labels)]).measured.em_full
    assert em is not None
    assert em.value == 1.0
