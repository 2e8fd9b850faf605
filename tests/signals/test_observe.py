from __future__ import annotations

import pytest

from suffice.signals.observe import Observer
from suffice.types import Kind, Step


def step(index: int, answer: str | None, tokens: int = 1) -> Step:
    return Step(index=index, tokens=tokens, answer=answer, answer_source=None)


def answers(kind: Kind, *given: str | None) -> list[str | None]:
    observer = Observer([], kind)
    return [observer.observe(step(index, answer)).answer for index, answer in enumerate(given, 1)]


@pytest.mark.parametrize("kind", ["reasoning", "rounds"])
def test_in_a_chain_the_answer_is_the_steps_own(kind: Kind) -> None:
    assert answers(kind, "a", None, "b", "a") == ["a", None, "b", "a"]


def test_among_samples_the_answer_is_the_votes_leader_even_if_nobody_reads_the_votes() -> None:
    assert answers("samples", None, "a", "b", None, "b", "a") == [None, "a", "a", "a", "b", "a"]


def test_the_running_vote_is_there_for_samples_alone() -> None:
    assert Observer([], "reasoning").votes is None
    observer = Observer(["votes"], "samples")
    for index, answer in enumerate([None, "a", "b", "b"], 1):
        observer.observe(step(index, answer))
    assert observer.votes is not None
    values = observer.votes.values()
    assert (observer.votes.leader, values["top_votes"], values["second_votes"]) == ("b", 2, 1)


@pytest.mark.parametrize("second", [1, 2])
def test_a_step_is_seen_once_and_in_order(second: int) -> None:
    observer = Observer([], "reasoning")
    observer.observe(step(2, "a"))
    with pytest.raises(ValueError, match=f"step {second} came after step 2"):
        observer.observe(step(second, "a"))
