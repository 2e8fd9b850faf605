"""Each form of a drift changes what its page says, from the moment that it names, and nothing before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from suffice.arrays import Ints
from suffice.errors import ConfigError
from suffice.replay.online.drift import KINDS, order_requests, parse_drift, relabel, split_regimes
from suffice.replay.online.stream import RecordedTraffic
from tests.replay.online.made import made_up

N = 400
STRONG, MIDDLE, WEAK = "gpt-4-turbo", "gpt-3.5", "llama"


@pytest.fixture
def traffic() -> RecordedTraffic:
    """A third of the requests by each of three models, EM 1, 0.5 and 0; a quarter are hard; four a question."""
    number = np.arange(N)
    model = [(STRONG, MIDDLE, WEAK)[i % 3] for i in number]
    right = [name == STRONG or (name == MIDDLE and i % 2 == 0) for i, name in zip(number, model, strict=True)]
    return replace(
        made_up(N, 0),
        model=tuple(model),
        full_ok=tuple(right),
        question=tuple(f"q{i // 4}" for i in number),
        query_class=tuple("hard" if i % 4 == 0 else "easy" for i in number),
    )


def drawn(traffic: RecordedTraffic, text: str, *, seed: int = 0) -> tuple[Ints, int]:
    drift = parse_drift(text)
    return order_requests(traffic, drift, np.random.default_rng(seed))


@pytest.mark.parametrize(
    "text", ["em=0.5@0.5", "model=gpt-4*>gpt-3.5@0.4", "class=hard:0.8@0.25", "relabel=0.3@0.5", "class=hard:0@0.5"]
)
def test_each_request_comes_at_most_once_and_the_drift_lies_where_it_was_asked(
    traffic: RecordedTraffic, text: str
) -> None:
    which, at = drawn(traffic, text)
    assert len(set(which.tolist())) == len(which)
    if not text.startswith("class"):
        assert at / len(which) == pytest.approx(parse_drift(text).at, abs=0.02)
    else:
        assert at == parse_drift(text).at * N
    again, _ = drawn(traffic, text)
    other, _ = drawn(traffic, text, seed=1)
    assert np.array_equal(which, again)
    assert not np.array_equal(which, other)


def test_em_has_the_better_models_first_and_the_others_from_then_on(traffic: RecordedTraffic) -> None:
    which, at = drawn(traffic, "em=0.5@0.5")
    assert {traffic.model[i] for i in which[:at]} == {STRONG}
    assert {traffic.model[i] for i in which[at:]} == {MIDDLE, WEAK}, "at most 0.5 is not above it"
    which, at = drawn(traffic, "em=0.4@0.5")
    assert {traffic.model[i] for i in which[at:]} == {WEAK}


def test_model_takes_names_by_pattern(traffic: RecordedTraffic) -> None:
    which, at = drawn(traffic, "model=gpt-4*>gpt-3.5*@0.4")
    assert {traffic.model[i] for i in which[:at]} == {STRONG}
    assert {traffic.model[i] for i in which[at:]} == {MIDDLE}
    which, at = drawn(traffic, "model=gpt-*>llama@0.6")
    assert {traffic.model[i] for i in which[:at]} == {STRONG, MIDDLE}
    assert {traffic.model[i] for i in which[at:]} == {WEAK}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.8, 1.0])
def test_class_has_its_share_from_then_on_and_its_own_before(traffic: RecordedTraffic, share: float) -> None:
    which, at = drawn(traffic, f"class=hard:{share:g}@0.5")
    hard = np.array([traffic.query_class[i] == "hard" for i in which])
    assert hard[:at].mean() == pytest.approx(0.25, abs=0.06)
    assert hard[at:].mean() == pytest.approx(share, abs=0.03)
    late = np.flatnonzero(hard[at:])
    if 0 < share < 1:
        assert late.min() < 0.2 * len(hard[at:]), "mixed, not one after the other"
        assert late.max() > 0.8 * len(hard[at:])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_relabel_loses_what_differs_on_whole_questions_and_only_from_then_on(
    traffic: RecordedTraffic, share: float
) -> None:
    which, at = drawn(traffic, f"relabel={share:g}@0.5")
    # What differs gained here; the new labels say it is wrong.
    runs = traffic.runs
    taken = replace(traffic, runs=replace(runs, z=np.where(runs.d, -1, 0).astype(np.int8))).take(which)
    after = relabel(taken, parse_drift(f"relabel={share:g}@0.5"), at)
    run = taken.runs.run_of_row
    assert np.array_equal(after.runs.z[run < at], taken.runs.z[run < at])
    assert np.array_equal(after.runs.d, taken.runs.d), "answers are what they were"
    changed = after.runs.z != taken.runs.z
    assert (after.runs.z[changed] == 1).all()
    hit = {taken.question[i] for i in run[changed]}
    late = {taken.question[i] for i in run[taken.runs.d & (run >= at)]}
    assert len(hit) / len(late) == pytest.approx(share, abs=0.15)
    inside = taken.runs.d & (run >= at) & np.isin(np.array(taken.question)[run], sorted(hit))
    assert (after.runs.z[inside] == 1).all()


def test_set_has_the_requests_of_the_other_file_from_then_on(traffic: RecordedTraffic) -> None:
    drift = parse_drift("set=folder/other.parquet@0.3")
    assert drift.file == Path("folder/other.parquet")
    which, at = order_requests(traffic, drift, np.random.default_rng(0), n_own=250)
    assert (which[:at] < 250).all()
    assert (which[at:] >= 250).all()
    assert at / len(which) == pytest.approx(0.3, abs=0.02)


BAD = (
    "",
    "em",
    "em=0.5",
    "em=0.5@0",
    "em=0.5@1",
    "em=0.5@1.5",
    "em=high@0.5",
    "em=2@0.5",
    "em=-0.1@0.5",
    "model=a@0.5",
    "model=a>b>c@0.5",
    "class=hard@0.5",
    "class=hard:2@0.5",
    "relabel=1.5@0.5",
    "relabel=@0.5",
    "weather=bad@0.5",
    "em=0.5@nan",
    "em=nan@0.5",
    "EM=0.5@0.5",
    "em=0.5 @ 0.5",
    "set=@0.5",
)


@pytest.mark.parametrize("text", BAD)
def test_what_cannot_be_read_is_answered_with_every_form_that_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed: ") as raised:
        parse_drift(text)
    for kind in KINDS:
        assert f"{kind}=" in str(raised.value).partition("allowed: ")[2]


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("em=0.0@0.5", "after"),
        ("em=1@0.5", "before"),
        ("model=claude>llama@0.5", "before"),
        ("model=llama>claude@0.5", "after"),
    ],
)
def test_a_drift_without_requests_on_one_side_says_on_which(traffic: RecordedTraffic, text: str, when: str) -> None:
    everything = replace(traffic, full_ok=(True,) * N) if text == "em=0.0@0.5" else traffic
    drift = parse_drift(text)
    with pytest.raises(ConfigError, match=f"leaves no requests {when} it"):
        split_regimes(everything, drift)


def test_an_unknown_class_is_answered_with_those_there_are(traffic: RecordedTraffic) -> None:
    with pytest.raises(ConfigError, match="known: easy, hard"):
        drawn(traffic, "class=hrad:0.8@0.5")
