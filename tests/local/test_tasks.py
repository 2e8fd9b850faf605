"""The demonstration's questions: the gold is right, the draw is the same everywhere, nothing is staged."""

from __future__ import annotations

import random
import re
from itertools import islice, pairwise

import pytest
from bench.trace_questions import TASKS, TRACED, traced
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.scoring.base import build_scorer
from suffice_demo.local import LocalModelError
from suffice_demo.local import questions as facts
from suffice_demo.local.questions import STORIES, DemoQuestion
from suffice_demo.local.tasks import EXAMPLES, FAMILIES, TaskQuestion, questions
from tests.drawn import examples

KINDS = sorted(FAMILIES)
N_AVAILABLE = 300
seeds = st.integers(0, 2**32)


def drawn(task: str, seed: int, n: int) -> list[DemoQuestion]:
    return list(islice(TASKS[task](random.Random(seed)), n))


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", text)]


def solved(story: str) -> int:
    """The answer to a word problem, found from its text alone by a second route."""
    n = numbers(story)
    if "gives away" in story:
        return sum(n[1] for _ in range(n[0])) - n[2]
    if "already has" in story:
        return sum(n[1] for _ in range(n[0])) + n[2]
    if "then loses" in story:
        return n[0] - n[2] + n[1]
    if "shares all of them" in story:
        each, left = divmod(n[0] + n[1], n[2])
        assert left == 0, f"{story} has no whole answer"
        return each
    if "dollars an hour" in story:
        return sum(n[1] for _ in range(n[0])) - n[2]
    if "years older" in story:
        return sum(n)
    if "does" in story and "pay?" in story:
        return sum([n[1]] * n[0] + [n[3]] * n[2])
    if "seats are taken" in story:
        return sum([n[1]] * n[0]) - n[2]
    if "pages a day" in story:
        return n[1] - sum([n[0]] * n[2])
    raise AssertionError(f"no second route for: {story}")


@pytest.mark.parametrize("kind", KINDS)
def test_three_hundred_distinct_questions_are_there(kind: str) -> None:
    tasks = questions(kind, N_AVAILABLE)
    assert len({q.id for q in tasks}) == N_AVAILABLE
    assert len({q.messages[-1]["content"] for q in tasks}) == N_AVAILABLE


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
@settings(max_examples=5)
def test_the_same_seed_gives_the_same_prompts_and_a_short_run_is_the_start_of_a_long_one(kind: str, seed: int) -> None:
    long = questions(kind, 60, seed=seed)
    assert questions(kind, 60, seed=seed) == long
    assert questions(kind, 13, seed=seed) == long[:13]


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_other_questions_in_front(kind: str) -> None:
    assert [q.id for q in questions(kind, 20, seed=1)] != [q.id for q in questions(kind, 20, seed=2)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_start_of_the_list_holds_all_families_in_equal_parts(kind: str) -> None:
    tasks = [q.task for q in questions(kind, 20)]
    assert {tasks.count(task) for task in FAMILIES[kind]} == {20 // len(FAMILIES[kind])}


def test_unknown_kinds_and_too_many_questions_are_refused_with_what_there_is() -> None:
    with pytest.raises(LocalModelError, match="unknown kind 'sample'; known: samples, reasoning"):
        questions("sample", 3)
    with pytest.raises(LocalModelError, match=r"samples has \d+ questions, 5000 were asked for"):
        questions("samples", 5000)


@pytest.mark.parametrize("kind", KINDS)
def test_one_scorer_reads_all_questions_of_a_kind(kind: str) -> None:
    assert len({q.scorer for q in questions(kind, N_AVAILABLE)}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_scorer_takes_the_gold_as_right_and_another_questions_gold_as_wrong(kind: str) -> None:
    tasks = questions(kind, N_AVAILABLE)
    scorer = build_scorer(tasks[0].scorer)
    for one, other in zip(tasks, [*tasks[1:], tasks[0]], strict=True):
        assert scorer.match(scorer.extract(one.gold), one.gold)
        assert scorer.match(scorer.extract(f"Answer: {one.gold}"), one.gold)
        same = scorer.normalise(one.gold) == scorer.normalise(other.gold)
        assert scorer.match(scorer.extract(other.gold), one.gold) is same


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_a_rule_worked_examples_and_the_question(kind: str) -> None:
    for q in questions(kind, 60):
        roles = [m["role"] for m in q.messages]
        assert roles == ["system", *["user", "assistant"] * ((len(roles) - 2) // 2), "user"]
        assert all(m["content"] for m in q.messages)


@pytest.mark.parametrize("kind", KINDS)
def test_no_worked_example_gives_away_a_question(kind: str) -> None:
    displayed = {m["content"] for task in FAMILIES[kind] for m in EXAMPLES[task] if m["role"] == "user"}
    assert not displayed & {q.messages[-1]["content"] for q in questions(kind, N_AVAILABLE)}


@pytest.mark.parametrize("task", TRACED["reasoning"])
def test_worked_thoughts_close_with_a_line_break_and_reach_the_answer_that_they_show(task: str) -> None:
    thoughts = [m for m in EXAMPLES[task] if "reasoning_content" in m]
    assert thoughts
    for message in thoughts:
        assert message["reasoning_content"].endswith(f"the answer is {message['content']}.\n")


def test_the_prompt_says_that_the_model_is_asked_to_check() -> None:
    assert all("check the result" in q.messages[0]["content"] for q in questions("reasoning", 10))


def test_samples_are_drawn_at_a_temperature_and_thoughts_are_not() -> None:
    def temperatures(tasks: tuple[TaskQuestion, ...]) -> set[float]:
        return {q.temperature for q in tasks}

    assert temperatures(questions("samples", 60)) == {0.7}
    assert temperatures(questions("reasoning", 60)) == {0.0}


@pytest.mark.parametrize("kind", TRACED)
def test_traced_questions_are_distinct_and_come_task_after_task(kind: str) -> None:
    tasks = traced(kind, 75)
    assert [q.task for q in tasks] == [task for task in TRACED[kind] for _ in range(75)]
    assert len({q.id for q in tasks}) == len({q.messages[-1]["content"] for q in tasks}) == len(tasks)
    assert traced(kind, 20) == tuple(q for task in TRACED[kind] for q in [x for x in tasks if x.task == task][:20])
    displayed = {m["content"] for task in TRACED[kind] for m in EXAMPLES[task] if m["role"] == "user"}
    assert not displayed & {q.messages[-1]["content"] for q in tasks}


def test_traced_samples_ask_questions_of_the_traced_chains() -> None:
    chains = {q.id: q for q in traced("reasoning", 75)}
    samples = traced("samples", 50)
    for q in samples:
        chain = chains[q.id]
        assert (q.messages[-1], q.gold) == (chain.messages[-1], chain.gold)
        assert [m["role"] for m in q.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
        assert q.messages[:5] == chain.messages[:5]
    assert {q.temperature for q in samples} == {0.7}
    with pytest.raises(LocalModelError, match="unknown kind 'rounds'; known: reasoning, samples"):
        traced("rounds", 3)


@given(seed=seeds)
@settings(max_examples=examples(20))
def test_word_problems_have_the_answer_that_their_text_has(seed: int) -> None:
    for item in drawn("stories", seed, 2 * len(STORIES)):
        assert solved(item.ask) == int(item.gold) >= 0, item.ask


@given(seed=seeds)
@settings(max_examples=examples(20))
def test_chains_have_the_value_that_their_text_has_and_never_fall_below_zero(seed: int) -> None:
    for item in drawn("chains", seed, 40):
        match = re.fullmatch(r"Calculate (\d+(?: [+-] \d+){2,3})\.", item.ask)
        assert match is not None, item.ask
        words = match.group(1).split()
        running = [int(words[0])]
        for sign, value in zip(words[1::2], words[2::2], strict=True):
            running.append(running[-1] + (int(value) if sign == "+" else -int(value)))
        assert min(running) >= 0
        assert running[-1] == int(item.gold)


@given(seed=seeds)
@settings(max_examples=10)
def test_the_largest_is_the_largest_of_different_numbers(seed: int) -> None:
    for item in drawn("largest", seed, 40):
        listed = numbers(item.ask)
        assert len(set(listed)) == len(listed) in (4, 5)
        assert max(listed) == int(item.gold)


@given(seed=seeds)
@settings(max_examples=10)
def test_a_series_goes_on_with_its_one_step_and_never_falls_below_zero(seed: int) -> None:
    for item in drawn("series", seed, 40):
        listed = [*numbers(item.ask), int(item.gold)]
        steps = {b - a for a, b in pairwise(listed)}
        assert len(listed) == 5
        assert len(steps) == 1
        assert steps != {0}
        assert min(listed) >= 0


def test_sums_are_right_and_complete() -> None:
    tasks = drawn("sums", 0, 1000)
    assert len(tasks) == 81
    for item in tasks:
        a, b = numbers(item.ask)
        assert numbers(item.gold) == [a, b, a + b]


def test_letters_are_right() -> None:
    tasks = drawn("letters", 0, 1000)
    assert len(tasks) == 2 * len(facts.WORDS)
    for item in tasks:
        word = item.ask.split('"')[1]
        assert item.gold == (word[:1] if " first " in item.ask else word[-1:])


@given(seed=seeds)
@settings(max_examples=10)
def test_lists_hold_exactly_one_right_choice(seed: int) -> None:
    for item in drawn("lists", seed, 1000):
        if "larger" in item.ask:
            first, second = numbers(item.ask)
            assert first != second
            assert item.gold == str(max(first, second))
            continue
        family = item.id.split("-")[1]
        options = re.split(r", | or ", item.ask.split(": ")[1].rstrip("?"))
        assert len(set(options)) == 3
        assert [option for option in options if option in facts.FAMILIES[family]] == [item.gold]


def test_sentiment_knows_both_labels_equally_often() -> None:
    golds = [item.gold for item in drawn("sentiment", 0, 1000)]
    assert golds.count("positive") == golds.count("negative") >= 20


def test_no_fact_stands_twice() -> None:
    assert len(facts.CAPITALS) >= 60
    assert len(set(facts.CAPITALS.values())) == len(facts.CAPITALS)
    reviews = facts.POSITIVE_REVIEWS + facts.NEGATIVE_REVIEWS
    assert len(set(reviews)) == len(reviews)
    assert len(set(facts.WORDS)) == len(facts.WORDS)
    members = [member for family in facts.FAMILIES.values() for member in family]
    assert len(set(members)) == len(members)


def test_capitals_are_plain_letters() -> None:
    assert [one for one in facts.CAPITALS.values() if not re.fullmatch(r"[A-Z][A-Za-z -]+", one)] == []
