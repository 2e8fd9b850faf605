"""The class mix and the steps of full runs as signals of all traffic."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from suffice.arrays import Floats
from suffice.assurance.drift import BATCH, REFERENCE, Cusum
from suffice.control.evidence.drift_features import N_CLASSES, N_COLUMNS, SIGNALS, DriftFeatures
from suffice.control.evidence.run_join import MOST_LATE, StartOrder
from suffice.types import Episode, Query
from tests.control.made import run

FIRST_CLASS, OTHERS, STEPS = len(SIGNALS), len(SIGNALS) + N_CLASSES, N_COLUMNS - 1


def episode(
    number: int,
    rng: random.Random,
    *,
    name: str = "law",
    conversation: str = "",
    audit: bool = False,
    n_steps: int = 8,
) -> Episode:
    request, outcome = run(number, rng, audit=audit)
    query = Query(planned_steps=8, n_words=rng.randrange(5, 40), query_class=name)
    request = replace(request, query=query, conversation=conversation)
    return Episode(request=request, outcome=replace(outcome, steps=outcome.steps[:n_steps]))


def batches(episodes: Iterator[Episode]) -> list[Floats]:
    return list(DriftFeatures().batches(episodes))


def first_alarm(columns: list[Floats]) -> int | None:
    """Batches behind the reference until the alarm."""
    cusum = Cusum(N_COLUMNS)
    alarms = [cusum.add(batch) for batch in columns]
    return alarms.index(True) - REFERENCE + 1 if True in alarms else None


def test_classes_have_columns_by_their_frequency_and_rare_ones_share_one() -> None:
    rng = random.Random(1)
    names = [*["a"] * 40, *["b"] * 30, *["c"] * 10, *["d"] * 8, *["e"] * 6, *["f"] * 4, *["g"] * 2]
    first, second = batches(episode(n, rng, name=names[n % 100]) for n in range(2 * BATCH))
    assert first.shape == (BATCH, N_COLUMNS)
    away = second.mean(axis=0)[FIRST_CLASS:STEPS]
    assert away == pytest.approx(np.zeros(N_CLASSES + 1)), "the same mix is no way from the reference"
    moved = batches(episode(n, rng, name=names[n] if n < BATCH else "g") for n in range(REFERENCE * BATCH))
    shares = moved[-1].mean(axis=0)[FIRST_CLASS : OTHERS + 1]
    assert shares[-1] > 0 > shares[0], "a class without a column is one of the others"


def test_a_new_class_is_an_alarm_and_a_rare_one_is_none() -> None:
    rng = random.Random(2)

    def alarm_at(share: float) -> int | None:
        return first_alarm(
            batches(
                episode(n, rng, name="new" if n >= REFERENCE * BATCH and rng.random() < share else "law")
                for n in range((REFERENCE + 15) * BATCH)
            )
        )

    assert alarm_at(0.01) is None
    assert alarm_at(0.5) in {1, 2, 3}


@pytest.mark.slow
def test_turns_of_one_conversation_count_once_for_the_mix() -> None:
    rng, open_now = random.Random(3), list[tuple[str, str, int]]()

    def turns(named: bool) -> Iterator[Episode]:
        for n in range(60 * BATCH):
            while len(open_now) < 50:
                open_now.append((f"c{n} {len(open_now)}", rng.choice(("law", "sums")), rng.randrange(1, 40)))
            at = rng.randrange(50)
            conversation, name, left = open_now[at]
            open_now[at] = (conversation, name, left - 1)
            if left == 1:
                del open_now[at]
            yield episode(n, rng, name=name, conversation=conversation if named else "")

    calm, clustered = (np.array([batch.mean(axis=0) for batch in batches(turns(named))]) for named in (True, False))
    column = slice(FIRST_CLASS, FIRST_CLASS + 1)
    assert calm[REFERENCE:, column].std() < 0.06 < clustered[REFERENCE:, column].std()


def test_longer_full_runs_are_an_alarm_and_the_end_of_a_burst_is_none() -> None:
    rng = random.Random(4)

    def alarm_at(longer: bool) -> int | None:
        def one(n: int) -> Episode:
            audit = n < REFERENCE * BATCH or rng.random() < 0.05
            usual = rng.choice((2, 3, 4))
            n_steps = (8 if longer and n >= REFERENCE * BATCH else usual) if audit else 1
            return episode(n, rng, audit=audit, n_steps=n_steps)

        return first_alarm(batches(one(n) for n in range((REFERENCE + 40) * BATCH)))

    assert alarm_at(False) is None
    alarm = alarm_at(True)
    assert alarm is not None
    assert alarm <= 10


def test_slow_runs_are_taken_where_they_began_and_one_that_hangs_holds_up_nothing_for_ever() -> None:
    """A third of the runs is slow and says little at first: in the order of their ends, all of the first are quick."""
    rng, features, starts = random.Random(5), DriftFeatures(), StartOrder(keeps_ended=True)
    taken, due, hung = list[Floats](), list[tuple[int, int, Episode]](), 0
    for n in range((REFERENCE + 20) * BATCH):
        slow = rng.random() < 1 / 3
        one = episode(n, rng, audit=n < REFERENCE * BATCH or rng.random() < 0.05, n_steps=2)
        first = replace(one.outcome.steps[0], tokens=1 if slow else 400)
        one = replace(one, outcome=replace(one.outcome, steps=(first, *one.outcome.steps[1:])))
        starts.began(one.request, n)
        if n == hung:
            continue
        due.append((n + (1_500 if slow else 0), n, one))
        due.sort()
        while due and due[0][0] <= n:
            starts.ended(due.pop(0)[2].outcome)
        assert hung + MOST_LATE <= n or not list(features.batches(starts.take_ended(n)))
        taken += features.batches(starts.take_ended(n))
    assert len(taken) > REFERENCE
    assert first_alarm(taken) is None


def test_a_prompt_counts_once_in_a_batch_and_a_route_of_few_prompts_has_batches_too() -> None:
    rng = random.Random(6)

    def episode_of(n: int, prompt: str) -> Episode:
        one = episode(n, rng)
        return replace(one, request=replace(one.request, question_key=prompt))

    assert len(batches(episode_of(n, "often" if n % 2 else f"once {n}") for n in range(2 * BATCH))) == 1
    assert len(batches(episode_of(n, f"{n % 10}") for n in range(10 * BATCH))) == 1


@pytest.mark.parametrize("n_unprobed", [0, 60, 100])
def test_runs_that_send_no_probe_because_nothing_can_stop_them_are_no_drift(n_unprobed: int) -> None:
    rng = random.Random(7)

    def traffic() -> Iterator[Episode]:
        for n in range((REFERENCE + 20) * BATCH):
            one = episode(n, rng, audit=n < REFERENCE * BATCH, n_steps=2)
            is_unprobed = n >= REFERENCE * BATCH and n % BATCH < n_unprobed
            seen: dict[str, Any] = {"answer_source": "probe", "confidence": rng.uniform(0.5, 0.99)}
            if is_unprobed or rng.random() < 0.2:
                seen = {"answer": None, "answer_source": None, "confidence": None, "missing": not is_unprobed}
            steps = [replace(step, **seen) for step in one.outcome.steps]
            yield replace(one, outcome=replace(one.outcome, steps=tuple(steps)))

    assert first_alarm(batches(traffic())) is None
