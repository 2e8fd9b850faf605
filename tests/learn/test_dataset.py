"""Episodes become rows: as a live policy saw them, with what is known of each, and nothing that is not."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from suffice.episode.ledger import Ledger
from suffice.errors import ConfigError
from suffice.learn.dataset import Dataset, as_step, build_dataset, early_features, recorded_columns
from suffice.learn.rows import MOST_REPEATS, weigh_repeats
from suffice.policy.folded_version import prompt_fold
from suffice.signals.base import fields_of
from suffice.signals.features import FeatureSet
from suffice.signals.observe import Observer
from suffice.store.database.views import EpisodeWithLabels, StoredLabel
from suffice.types import Decision, Feedback, Signals, Step, StepRecord, Usage
from tests.learn.made import ANSWER_TOKENS, GOLD, PROBE_TOKENS, STEP_TOKENS, Simulation, episodes, match

LIVE = episodes(400, seed=1)
OBSERVED = Simulation(mode="observe")


def changed(item: EpisodeWithLabels, **outcome: Any) -> EpisodeWithLabels:
    """The same run with another end."""
    return replace(item, episode=replace(item.episode, outcome=replace(item.episode.outcome, **outcome)))


def labelled(item: EpisodeWithLabels, **what: Any) -> EpisodeWithLabels:
    """The same run with one label."""
    label = StoredLabel(seq=item.seq + 1, feedback=Feedback(feedback_id=f"f{item.seq}", **what))
    return replace(item, labels=(label,))


def run_of(data: Dataset, number: int) -> slice:
    return slice(int(data.starts[number]), int(data.starts[number + 1]))


def test_every_run_is_learned_from_or_counted_with_its_reason() -> None:
    data = build_dataset(LIVE, match=match)
    assert len(data) + sum(data.left_out.values()) == len(LIVE)
    n_stopped = sum(item.episode.outcome.stopped for item in LIVE)
    assert data.left_out == {"stopped, without a label by design": n_stopped}
    assert n_stopped > 100
    assert data.full.all()


def test_rows_hold_what_a_live_policy_read() -> None:
    """Number by number, for a run taken step by step through the live observer."""
    data = build_dataset(LIVE, match=match)
    features = FeatureSet(data.chosen.names)
    by_seq = {item.seq: item for item in LIVE}
    for number in range(0, len(data), 40):
        episode = by_seq[int(data.seq[number])].episode
        observer = Observer((*features.needs, "query"), episode.request.kind, query=episode.request.query)
        for row, record in zip(data.x[run_of(data, number)], episode.outcome.steps, strict=True):
            signals = observer.observe(as_step(record))
            assert row == pytest.approx(features.row(signals), abs=1e-9)


def test_the_order_in_which_episodes_and_labels_are_read_changes_nothing() -> None:
    shuffled = list(LIVE)
    random.Random(3).shuffle(shuffled)
    assert build_dataset(shuffled, match=match).digest() == build_dataset(LIVE, match=match).digest()


def test_a_label_more_is_another_dataset() -> None:
    plain = episodes(100, seed=1, simulation=replace(OBSERVED, labels="none"))
    one_more = [labelled(plain[0], gold=GOLD), *plain[1:]]
    first, second = build_dataset(plain, match=match), build_dataset(one_more, match=match)
    assert first.digest() != second.digest()
    assert (first.last_seq, second.last_seq) == (plain[-1].seq, plain[-1].seq)
    assert second.labelled.sum() == 1


@pytest.mark.parametrize(
    ("label", "right"),
    [
        ({"gold": GOLD}, [0, 1, 1, 1]),  # a reference judges every answer
        ({"gold": "7"}, [0, 0, 0, 0]),
        ({"correct": True}, [0, 1, 1, 1]),  # another answer than the right one is wrong
        ({"correct": False}, [-1, 0, 0, 0]),  # another answer than a wrong one may be right
        ({"thumbs": "down"}, [-1, -1, -1, -1]),  # taste is no label
    ],
)
def test_an_answer_is_right_wrong_or_unknown(label: dict[str, Any], right: list[int]) -> None:
    item = episodes(1, seed=0, simulation=replace(OBSERVED, p_astray=0.0, p_fails=0.0, labels="none"))[0]
    steps = tuple(
        replace(item.episode.outcome.steps[0], index=index, answer=answer)
        for index, answer in enumerate(["5", GOLD, GOLD, GOLD], 1)
    )
    data = build_dataset([labelled(changed(item, steps=steps, answer=GOLD), **label)], match=match)
    assert data.right.tolist() == right
    assert data.same.tolist() == [False, True, True, True]


def test_features_of_the_version_in_force_stand_behind_its_own() -> None:
    data = build_dataset(LIVE, match=match, also=("agreement", "n_chars"))
    assert data.also == ("n_chars",)
    assert data.own.shape[1] + 1 == data.x.shape[1]
    assert (data.columns(("n_chars", "agreement"))[:, 1] == data.x[:, data.chosen.names.index("agreement")]).all()
    with pytest.raises(ConfigError, match="does not have the feature 'n_words'"):
        data.columns(("n_words",))


def test_costs_are_what_a_stop_would_have_paid() -> None:
    item = episodes(1, seed=2, simulation=OBSERVED)[0]
    n = len(item.episode.outcome.steps)
    data = build_dataset([item], match=match)
    step = np.arange(1, n + 1)
    assert data.cost.tolist() == (step * (STEP_TOKENS + PROBE_TOKENS) + ANSWER_TOKENS).tolist()
    assert data.full_tokens.tolist() == [n * STEP_TOKENS + ANSWER_TOKENS]
    assert data.per_step.tolist() == [STEP_TOKENS] * n


def test_a_stop_inside_a_wave_of_samples_pays_for_the_wave() -> None:
    item = episodes(1, seed=2, simulation=OBSERVED)[0]
    steps = tuple(replace(item.episode.outcome.steps[0], index=i, probe_tokens=0) for i in range(1, 7))
    request = replace(item.episode.request, kind="samples", n_samples=6)
    votes = changed(item, steps=steps, usage=replace(item.episode.outcome.usage, completion_tokens=600))  # type: ignore[type-var]
    votes = replace(votes, episode=replace(votes.episode, request=request))
    assert build_dataset([votes], match=match).cost.tolist() == [400, 400, 400, 400, 600, 600]


def test_a_decided_vote_is_measured_against_all_its_samples_and_paid_for_as_drawn() -> None:
    """Nine samples of 10 tokens were asked for; five decided it, and 5 tokens came of a sixth that was cancelled."""
    item = episodes(1, seed=2, simulation=OBSERVED)[0]
    first = replace(item.episode.outcome.steps[0], tokens=10, answer="4", probe_tokens=0)
    usage = Usage(prompt_tokens=10, completion_tokens=55)
    item = changed(
        item,
        steps=tuple(replace(first, index=at) for at in range(1, 6)),
        vote=(("4", 5),),
        answer="4",
        usage=usage,
        stop_step=None,
    )
    request = replace(item.episode.request, kind="samples", n_samples=9)
    item = replace(item, episode=replace(item.episode, request=request))
    data = build_dataset([item], match=match, wave=3)
    assert data.cost.tolist() == [30, 30, 30, 55, 55]
    assert data.full_tokens.tolist() == [90]


def test_only_the_latest_audits_are_looked_at_and_what_came_since() -> None:
    data = build_dataset(LIVE, match=match, most_audits=10)
    assert data.by_design.sum() == 10
    assert data.left_out["too old"] > 0
    assert data.age[data.by_design].tolist() == list(range(9, -1, -1))
    assert (np.diff(data.seq) > 0).all()


def test_runs_under_other_settings_are_another_world() -> None:
    setups = ["old"] * 300 + ["new"] * 100
    moved = [
        replace(item, episode=replace(item.episode, request=replace(item.episode.request, setup=setup)))
        for item, setup in zip(LIVE, setups, strict=True)
    ]
    data = build_dataset(moved, match=match)
    assert data.seq.min() > LIVE[299].seq
    assert data.left_out["other settings"] > 0


def test_live_runs_that_nobody_asked_on_the_way_stand_for_nothing() -> None:
    """Then only audits speak, each for as many as its odds say."""
    mute = [
        changed(item, steps=tuple(replace(step, answer=None) for step in item.episode.outcome.steps))
        if not item.episode.request.audit and not item.episode.outcome.stopped and number % 2
        else item
        for number, item in enumerate(LIVE)
    ]
    data = build_dataset(mute, match=match)
    assert data.by_design.all()
    assert data.p_full.tolist() == [0.1] * len(data)
    assert data.left_out["live, unprobed"] > 0
    assert data.left_out["live, not stopped, most of them unprobed"] > 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"end_reason": "upstream_error"}, "broken"),
        ({"end_reason": "done", "steps": ()}, "broken"),
        ({"end_reason": "client_left"}, "broken"),
    ],
)
def test_a_run_without_a_telling_end_is_left_out(changes: dict[str, Any], reason: str) -> None:
    observed = episodes(30, seed=4, simulation=replace(OBSERVED, audit_share=0.0))
    data = build_dataset([changed(observed[0], **changes), *observed[1:]], match=match)
    assert data.left_out == {reason: 1}


def test_an_audit_that_was_broken_off_is_kept_as_a_loss() -> None:
    audits = episodes(30, seed=4, simulation=Simulation(audit_share=1.0))
    data = build_dataset([changed(audits[0], end_reason="client_left"), *audits[1:]], match=match)
    assert data.abandoned.sum() == 1
    assert not data.full[data.abandoned].any()
    assert not data.labelled[data.abandoned].any()


def test_without_anything_to_learn_it_says_what_there_was() -> None:
    with pytest.raises(ValueError, match="4 stopped, without a label by design"):
        build_dataset([item for item in LIVE if item.episode.outcome.stopped][:4], match=match)
    with pytest.raises(ValueError, match="none at all"):
        build_dataset([], match=match)


def test_drift_is_watched_on_the_first_step_of_all_traffic_stopped_or_not() -> None:
    """Later steps are missing where the policy stopped: their means move with the policy, not with the world."""
    features = early_features(LIVE, ("logit(confidence)", "log1p(tokens_used)"))
    assert features.shape == (len(LIVE), 2)
    whole = build_dataset(episodes(400, seed=1, simulation=OBSERVED), match=match)
    first = whole.x[whole.starts[:-1], whole.chosen.names.index("logit(confidence)")]
    assert np.sort(features[:, 0]) == pytest.approx(np.sort(first), abs=1e-9)
    assert early_features([], ("has_answer",)).shape == (0, 1)


# --------------------------------------------------------------------------- groups


def test_planted_duplicates_never_cross_a_split() -> None:
    """Forty prompts asked again and again: no fold shares one with another, now or in a later version."""
    data = build_dataset(episodes(600, seed=5, simulation=replace(OBSERVED, n_prompts=40)), match=match)
    for fold in range(5):
        ours = [key for key, f in zip(data.key, data.fold, strict=True) if f == fold]
        theirs = [key for key, f in zip(data.key, data.fold, strict=True) if f != fold]
        assert not set(ours) & set(theirs)
    later = build_dataset(episodes(600, seed=6, simulation=replace(OBSERVED, n_prompts=40)), match=match)
    known = dict(zip(data.key, data.fold.tolist(), strict=True))
    assert all(known.get(key, fold) == fold for key, fold in zip(later.key, later.fold.tolist(), strict=True))


def test_folds_are_about_equal() -> None:
    counts = np.bincount([prompt_fold(f"q{i}", 5) for i in range(5_000)])
    assert counts.min() > 900


def test_a_prompt_asked_a_thousand_times_counts_as_a_few() -> None:
    weights = weigh_repeats(["a"] * 1_000 + ["b", "c", "b"])
    assert weights[:1_000].sum() == pytest.approx(MOST_REPEATS)
    assert weights[1_000:].tolist() == [1, 1, 1]


def test_signals_of_a_live_run_can_be_read_again_from_its_record() -> None:
    """Otherwise a policy that reads them would stop live runs, and no audit would show it."""
    needs = ("drafts(threshold=0.4)", "hedges", "loops", "pattern", "end-of-thought", "stability", "said", "wording")
    rng, live, records = random.Random(7), list[Signals](), list[StepRecord]()
    for kind in ("reasoning", "rounds"):
        ledger, observer = Ledger(episodes(1)[0].episode.request, 0.0), Observer(needs, kind)
        for index in range(1, 40):
            step = Step(
                index=index,
                tokens=9,
                answer=rng.choice(["4", "5", None]),
                answer_source="caller",
                text=" ".join(
                    rng.choices(["wait", "so", "the", "answer", "is", "four", "two"], k=rng.choice([0, 3, 8]))
                ),
                end_margin=rng.choice([None, 0.5, 3.0]),
                logprob=-rng.random(),
                reported_done=rng.choice([None, True, False]),
            )
            live.append(observer.observe(step))
            ledger.record_step(step, live[-1], Decision(action="continue", reason="x"))
        records += ledger.steps
    columns = recorded_columns(needs, "rounds", [(None, records[:39]), (None, records[39:])])
    for field in fields_of(needs):
        seen = np.array([signals.values[field] for signals in live], dtype=np.float64)
        assert np.array_equal(columns.values[field], seen, equal_nan=True), field
    assert 0 < np.nanmean(columns.values["draft_patience"] >= 2) < 1
