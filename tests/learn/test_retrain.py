"""A refit is a proposal: made again from its lineage, honest about unseen prompts, and in force nowhere."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, replace

import msgspec
import numpy as np
import pytest

from suffice.errors import ConfigError
from suffice.learn.dataset import Dataset, build_dataset
from suffice.learn.retrain import FitRecipe, Schedule, VersionProposal, make_card, refit_reason, retrain
from suffice.learn.rows import audit_runs
from suffice.learn.version import as_served, fold_version
from suffice.policy.base import build_policy
from suffice.policy.folded_version import FoldedVersion, load_version, prompt_fold
from suffice.store.database.views import EpisodeWithLabels
from suffice_demo.replayed_runs import replay_run
from tests.learn.made import Simulation, episodes, match

SIMULATION = Simulation(mode="observe", astray_class="trick")
EPISODES = episodes(900, seed=21, simulation=SIMULATION)
QUICK = FitRecipe(parts="linear", n_levels=11)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return build_dataset(EPISODES, match=match)


@pytest.fixture(scope="module")
def proposal(data: Dataset) -> VersionProposal:
    return retrain(data, max_em_drop=0.02, recipe=QUICK)


@pytest.fixture(scope="module")
def version(proposal: VersionProposal) -> FoldedVersion:
    assert proposal.version is not None
    return proposal.version


# --------------------------------------------------------------------------- when


@pytest.mark.parametrize(
    ("n_requests", "n_new", "since_alarm", "reason"),
    [
        (1_000, 50, None, "schedule"),
        (999, 50, None, None),
        (5_000, 29, None, None),  # nothing new to learn from
        (600, 0, 300, "drift"),
        (5_000, 900, 299, None),  # after an alarm it waits for runs of the new world, schedule or not
        (499, 400, 400, None),  # no two refits within 500 requests: no flapping
    ],
)
def test_a_refit_is_due_on_schedule_and_after_drift_and_never_flaps(
    n_requests: int, n_new: int, since_alarm: int | None, reason: str | None
) -> None:
    assert refit_reason(Schedule(), n_requests=n_requests, n_new_runs=n_new, n_runs_since_alarm=since_alarm) == reason


# --------------------------------------------------------------------------- lineage


def test_the_same_data_parent_and_recipe_give_the_same_proposal(data: Dataset, proposal: VersionProposal) -> None:
    again = retrain(build_dataset(EPISODES[::-1], match=match), max_em_drop=0.02, recipe=QUICK)
    assert again == proposal
    other = retrain(data, max_em_drop=0.02, recipe=replace(QUICK, half_life=100.0))
    assert other.version != proposal.version
    assert other.lineage.digest == proposal.lineage.digest


def test_lineage_tells_parent_data_log_rows_packages_and_seed(data: Dataset, version: FoldedVersion) -> None:
    lineage = retrain(data, version, max_em_drop=0.02, reason="drift", recipe=QUICK).lineage
    assert (lineage.parent, lineage.reason, lineage.digest) == (version.address, "drift", data.digest())
    assert (lineage.first_seq, lineage.last_seq) == (EPISODES[0].seq, EPISODES[-1].labels[-1].seq)
    assert (lineage.n_runs, lineage.n_by_design, lineage.n_prompts, lineage.n_labelled) == (900, 900, 900, 900)
    assert [name for name, _ in lineage.versions] == ["numpy", "python", "scikit-learn", "suffice"]
    assert lineage.recipe == QUICK
    assert {model.trained.digest for model in version.models} == {data.digest()}


def test_a_proposal_cannot_put_itself_in_force(proposal: VersionProposal) -> None:
    with pytest.raises(FrozenInstanceError):
        proposal.verdict = "better"  # type: ignore[misc]
    assert (proposal.verdict, proposal.why) == ("first", "there is no parent")


def test_too_little_to_learn_from_is_an_answer_and_no_version() -> None:
    few = build_dataset(episodes(30, seed=1, simulation=SIMULATION), match=match)
    result = retrain(few, max_em_drop=0.02, recipe=QUICK)
    assert (result.version, result.card, result.verdict) == (None, None, "inconclusive")
    assert "fewer than" in result.why
    assert result.lineage.n_runs == 30


# --------------------------------------------------------------------------- version


def test_a_version_is_read_back_as_it_was_written(proposal: VersionProposal, version: FoldedVersion) -> None:
    assert proposal.card is not None
    json.dumps(asdict(proposal.card), allow_nan=False)  # every number in it is finite
    written = json.loads(json.dumps(version.plain(), allow_nan=False))
    assert load_version(written) == version
    assert load_version(written).address == version.address


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, "version.schema: Invalid enum value 1"),
        ({"more": 1}, "version: Object contains unknown field `more`"),
        ({"models": []}, "version.models: got 0; 1 to 20, one for each fold"),
        ({"levels": [1, 2]}, r"version.levels\[0\]: Expected `array`"),
        ({"levels": [[0.1], [0.1]]}, "version.levels: need a list of levels for each of 5 models"),
        ({"levels": [[0.2, 0.1]] * 5}, r"levels\[0\]: must rise"),
        ({"levels": [[0.1, float("nan")]] * 5}, r"levels\[0\]\[1\]: got nan"),
        (
            {"levels": [[0.1]] * 4 + [[0.1, 0.2]]},
            "version.levels: need a list of levels for each of 5 models, equally long",
        ),
    ],
)
def test_a_version_that_is_none_is_refused_with_its_place(
    version: FoldedVersion, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_version({**version.plain(), **change})


@pytest.mark.parametrize("level", [0, 1, 5, 10])
def test_what_is_judged_is_what_is_served(data: Dataset, version: FoldedVersion, level: int) -> None:
    """The live policy of each prompt, taken through its episode step by step, stops where the card's rows say."""
    runs = as_served(audit_runs(data), version)
    row = fold_version(version).rows_at(runs, level)
    by_seq = {item.seq: item.episode for item in EPISODES}
    for number in range(0, len(data), 9):
        episode = by_seq[int(data.seq[number])]
        replayed = replay_run(episode, build_policy(version.policy(episode.request.question_key, level)))
        assert replayed is not None
        last = int(data.last[number])
        expected = None if row[number] == last else int(row[number] - data.starts[number]) + 1
        assert (replayed.stop_step if replayed.stop_step != len(episode.outcome.steps) else None) == expected


def test_a_level_that_there_is_not_is_refused(version: FoldedVersion) -> None:
    with pytest.raises(IndexError, match="level: got 11; 0 to 10"):
        version.policy("q1", 11)


def test_no_model_has_seen_a_prompt_that_it_serves(version: FoldedVersion) -> None:
    """Duplicates planted with labels by the toss of a coin: what was remembered of a prompt would show as skill.

    Each prompt's runs are told apart by nothing but their prompt; across the split there is nothing to know.
    """
    planted = build_dataset(episodes(900, seed=22, simulation=replace(SIMULATION, n_prompts=60)), match=match)
    coin = np.array([prompt_fold(key + "coin", 2) for key in planted.key])  # one toss a prompt
    number = np.array([int(key[1:]) for key in planted.key], dtype=np.float64)
    marks = (number[:, None] == np.arange(60)).astype(np.float64)  # a feature that names each prompt
    named = replace(
        planted,
        x=np.hstack([planted.x * 0.0, marks[planted.run_of_row]]),
        chosen=replace(planted.chosen, dense=(), marks=tuple([f"q{i}" for i in range(planted.x.shape[1] + 60)])),
        same=(coin == 1)[planted.run_of_row],
        full_right=np.full(len(planted), -1, dtype=np.int8),
        right=np.full(len(planted.x), -1, dtype=np.int8),
    )
    from suffice.learn.models import Examples, fit
    from suffice.learn.rows import good_rows_of_run

    within, across = [], []
    inner = np.ones(len(named.x), dtype=bool)
    inner[named.last] = False
    for fold in range(5):
        seen = inner & (named.fold != fold)[named.run_of_row]
        rows = Examples(named.own[seen], good_rows_of_run(named, "as-good")[seen])
        model = fit(rows, named.chosen, parts="linear")
        unseen = inner & (named.fold == fold)[named.run_of_row]
        within.append(_skill(model.scores(named.x[seen]), named.same[seen]))
        across.append(_skill(model.scores(named.x[unseen]), named.same[unseen]))
    assert min(within) > 0.95  # a split by run would have measured this
    assert abs(np.mean(across)) < 0.05


def _skill(p: np.ndarray, good: np.ndarray) -> float:
    """How much more often a good row is above a bad one than below it, [-1, 1]."""
    order = np.argsort(p, kind="stable")
    _, first, size = np.unique(p[order], return_index=True, return_counts=True)
    rank = np.repeat(first + (size - 1) / 2, size)
    of = np.empty(len(p))
    of[order] = rank
    n, m = good.sum(), (~good).sum()
    return float(2 * (of[good].sum() - n * (n - 1) / 2) / (n * m) - 1)


# --------------------------------------------------------------------------- report card


def test_a_card_says_what_was_saved_and_lost_on_prompts_that_nobody_had_seen(
    proposal: VersionProposal, version: FoldedVersion
) -> None:
    """On two thousand fresh runs the card's numbers come true, within its own intervals and a little."""
    assert proposal.card is not None
    fresh = build_dataset(episodes(2_000, seed=5, simulation=SIMULATION), match=match)
    runs = as_served(audit_runs(fresh), version)
    for point in proposal.card.frontier:
        levels = np.array(point.levels)[runs.fold]
        row = fold_version(version).rows(runs)[np.arange(len(runs)), levels]
        saving, drop = 1 - runs.cost[row].sum() / runs.full.sum(), runs.z[row].mean()
        assert point.saving.low is not None
        assert point.saving.high is not None
        assert point.drop.high is not None
        assert point.saving.low - 0.03 < saving < point.saving.high + 0.03
        assert drop < point.drop.high + 0.005
        assert point.drop.value == pytest.approx(point.lost.value - point.gained.value)
    savings = [point.saving.value for point in proposal.card.frontier]
    assert savings == sorted(savings)
    assert savings[-1] > 0.1


def test_calibration_is_told_with_its_interval_and_sees_a_model_that_is_too_sure(
    data: Dataset, proposal: VersionProposal, version: FoldedVersion
) -> None:
    assert proposal.card is not None
    honest = proposal.card.calibration
    assert honest is not None
    assert honest.ece.low is not None
    assert honest.ece.value < 0.06
    assert honest.ece.low <= honest.ece.value
    assert sum(b.n for b in honest.bins) == honest.ece.n
    blind = replace(SIMULATION, astray_class="")
    learned = retrain(
        build_dataset(episodes(600, seed=24, simulation=blind), match=match), max_em_drop=0.02, recipe=QUICK
    ).version
    assert learned is not None
    harder = build_dataset(episodes(900, seed=23, simulation=replace(blind, p_astray=0.6)), match=match)
    moved = make_card(harder, learned, None, max_em_drop=0.02, rng=np.random.default_rng(0)).calibration
    assert moved is not None
    assert moved.bias.low is not None
    assert moved.bias.low > 0.05
    assert honest.bias.high is not None
    assert honest.bias.high < 0.05


def test_gains_in_one_class_do_not_hide_harm_in_another() -> None:
    """A sixth of the runs are tricks that a stop loses; the pool alone would look bearable."""
    plain = build_dataset(
        episodes(1_200, seed=31, simulation=replace(SIMULATION, p_astray=0.0, p_fails=0.0)), match=match
    )
    learned = retrain(plain, max_em_drop=0.02, recipe=QUICK).version
    assert learned is not None
    mixed = build_dataset(
        episodes(1_500, seed=32, simulation=replace(SIMULATION, p_astray=0.16, p_fails=0.0)),
        match=match,
        also=learned.models[0].features,
    )
    card = make_card(mixed, learned, None, max_em_drop=0.15, rng=np.random.default_rng(0))
    harm = {one.query_class: one for one in card.classes}
    assert harm[""].status == "within budget"
    assert harm["trick"].status == "harmed"
    assert harm["trick"].lost.value > 0.4
    assert harm["trick"].gained.value == 0.0


def test_a_class_of_few_runs_is_unknown(data: Dataset, version: FoldedVersion) -> None:
    small = build_dataset(EPISODES[:400], match=match)
    card = make_card(small, version, None, max_em_drop=0.02, rng=np.random.default_rng(0))
    by_name = {one.query_class: one for one in card.classes}
    assert by_name["trick"].n_runs < 200
    assert by_name["trick"].status == "unknown"


def test_nothing_lost_in_a_hundred_runs_is_no_proof_of_nothing_lost(data: Dataset, version: FoldedVersion) -> None:
    """Draws of runs without a loss hold none either: the end of the interval is the exact one."""
    easy = episodes(100, seed=40, simulation=replace(SIMULATION, p_astray=0.0, p_fails=0.0))
    few = build_dataset(easy, match=match, also=version.models[0].features)
    card = make_card(few, version, None, max_em_drop=0.02, rng=np.random.default_rng(0))
    lost = card.frontier[0].lost
    assert lost.value == 0.0
    assert lost.high == pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-6)
    assert card.frontier[0].drop.high == lost.high


# --------------------------------------------------------------------------- against the parent


def test_a_version_is_not_better_than_itself(data: Dataset, version: FoldedVersion) -> None:
    card = make_card(data, version, version, max_em_drop=0.02, rng=np.random.default_rng(0))
    assert card.compared is not None
    assert card.compared.verdict == "inconclusive"
    assert (card.compared.gain.low, card.compared.gain.high) == (0.0, 0.0)


def test_a_version_of_the_new_world_is_better_there_than_its_parent_and_the_other_way_round() -> None:
    """In the second world confidence is worth nothing and a long streak is: what the first one taught is wrong."""
    before = retrain(
        build_dataset(episodes(900, seed=51, simulation=SIMULATION), match=match), max_em_drop=0.02, recipe=QUICK
    ).version
    turned = build_dataset([_turned(item) for item in episodes(1_500, seed=52, simulation=SIMULATION)], match=match)
    assert before is not None
    after = retrain(turned, before, max_em_drop=0.02, reason="drift", recipe=QUICK)
    assert (after.verdict, after.lineage.reason) == ("better", "drift")
    assert after.version is not None
    back = make_card(turned, before, after.version, max_em_drop=0.02, rng=np.random.default_rng(0)).compared
    assert back is not None
    assert back.verdict == "worse"
    assert after.card is not None
    assert after.card.compared is not None
    assert after.card.compared.parent == before.address


def _turned(item: EpisodeWithLabels) -> EpisodeWithLabels:
    """The same run in a world where the model is sure when it is led astray, and unsure when it knows."""
    outcome = item.episode.outcome
    steps = tuple(replace(step, confidence=1.0 - (step.confidence or 0.0)) for step in outcome.steps)
    turned = replace(outcome, steps=steps)
    return replace(item, episode=replace(item.episode, outcome=turned))


def test_a_parent_that_reads_other_features_is_not_compared_with(data: Dataset, version: FoldedVersion) -> None:
    names = version.models[0].features
    renamed = tuple(msgspec.structs.replace(model, features=(*names[:-1], "n_chars")) for model in version.models)
    stranger = msgspec.structs.replace(version, models=renamed)
    result = retrain(data, stranger, max_em_drop=0.02, recipe=QUICK)
    assert result.verdict == "inconclusive"
    assert "other features" in result.why


def test_without_labels_there_is_a_version_and_nothing_is_known_of_failing_runs() -> None:
    unlabelled = build_dataset(episodes(300, seed=8, simulation=replace(SIMULATION, labels="none")), match=match)
    without = retrain(unlabelled, max_em_drop=0.02, recipe=QUICK)
    assert without.version is not None
    assert without.card is not None
    assert without.card.failing is None
