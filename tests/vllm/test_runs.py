"""The forced text is written whole and once, whatever the scheduler does between two of its tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice_vllm.runs import MOST_RUNS, MOST_WAIT_TOKENS, RunTable, check_arguments, refusal
from tests.vllm.conftest import TAG, encode

TEXT = "\n" + TAG
CLOSING = encode(TAG)  # the line has just ended, so the text's own line end is left out


def at_once(token: int) -> str:
    """Every token may be the last of a thought."""
    return "\n"


def table_with(name: str = "r") -> RunTable:
    table = RunTable(encode)
    table.enter({"suffice_run": name, "suffice_text": TEXT, "suffice_tag": TAG})
    return table


@given(
    thought=st.lists(st.integers(4, 31), min_size=1, max_size=20),
    repeats=st.lists(st.integers(1, 3), min_size=len(CLOSING), max_size=len(CLOSING)),
    lost=st.lists(st.integers(0, 3), min_size=len(CLOSING), max_size=len(CLOSING)),
)
def test_steps_may_be_repeated_or_lost_and_the_text_is_whole(
    thought: list[int], repeats: list[int], lost: list[int]
) -> None:
    """A step whose token is thrown away forces the same one again; lost tokens are forced anew."""
    table, output = table_with(), list(thought)
    run = table.enter({"suffice_run": "r"})
    assert run is not None
    assert run.next_forced(len(output), lambda: output, at_once) is None
    assert table.end("r")
    for again, gone in zip(repeats, lost, strict=True):
        tokens = {run.next_forced(len(output), lambda: output, at_once) for _ in range(again)}
        assert len(tokens) == 1
        (token,) = tokens
        if token is None:
            break
        output.append(token)
        if gone:  # a preemption takes tokens back, but none of those before the stop
            del output[max(len(thought), len(output) - gone) :]
    while (token := run.next_forced(len(output), lambda: output, at_once)) is not None:
        output.append(token)
    assert output == thought + CLOSING
    assert not table.end("r")


def test_a_thought_that_ended_by_itself_is_left_alone() -> None:
    table = table_with()
    run = table.enter({"suffice_run": "r"})
    assert run is not None
    assert table.end("r")
    output = [9, 9, *encode(TAG), 12]
    assert run.next_forced(len(output), lambda: output, at_once) is None
    assert run.is_over
    assert not table.end("r")


def ended(wanted: str, written: str = "") -> str:
    """A thought that is to end after `written`, where the model would say `said`, a character a token."""
    table = RunTable(lambda text: [ord(char) for char in text])
    run = table.enter({"suffice_run": "r", "suffice_text": TEXT, "suffice_tag": TAG})
    assert run is not None
    assert table.end("r")
    output = [ord(char) for char in written]
    for own in wanted:
        token = run.next_forced(len(output), lambda: output, chr)
        if bool(run.is_over):
            break
        output.append(ord(own) if token is None else token)
    return "".join(map(chr, output))


@pytest.mark.parametrize("n_more", [0, 3, MOST_WAIT_TOKENS, 2 * MOST_WAIT_TOKENS])
def test_a_thought_ends_with_its_line_or_after_a_while(n_more: int) -> None:
    assert ended("x" * n_more + "\n" + "y" * 200) == "x" * n_more + "\n" + TAG
    assert ended("x" * 200) == "x" * 2 * MOST_WAIT_TOKENS + TEXT


@pytest.mark.parametrize(
    ("rest", "kept"),
    [
        ("36. That is right. So it is 36.\nMore.\n", "36. That is right."),
        ("36 and 3.5 and 37.\nMore.\n", "36 and 3.5 and 37.\n"),
        ("\u7b54\u6848\u3002\u7b54", "\u7b54\u6848\u3002"),
    ],
)
def test_a_long_line_ends_with_a_sentence_and_never_at_the_point_of_a_number(rest: str, kept: str) -> None:
    before = "x" * (MOST_WAIT_TOKENS - 1) + " "
    tail = TAG if kept.endswith("\n") else TEXT
    assert ended(before + rest + "y" * 200) == before + kept + tail


@given(st.integers(0, 3), st.text("0123456789", min_size=1, max_size=9), st.sampled_from(["", ".5", ",000", ":30"]))
def test_no_thought_is_cut_in_a_number(n_before: int, digits: str, fraction: str) -> None:
    """Seen live: 'the answer is 3', cut before its 6, was answered with 3."""
    before, number = "x" * (2 * MOST_WAIT_TOKENS - n_before), digits + fraction
    kept = ended(before + number + " and" + "y" * 200).removesuffix(TEXT)
    assert not len(before) < len(kept) <= len(before + number)


def test_a_tag_that_has_begun_is_completed_and_not_written_twice() -> None:
    table = table_with()
    run = table.enter({"suffice_run": "r"})
    assert run is not None
    assert table.end("r")
    output = [9, encode(TAG)[0]]
    while (token := run.next_forced(len(output), lambda: output, at_once)) is not None:
        output.append(token)
    assert output == [9, *encode(TAG)]


def test_old_runs_are_forgotten_and_unknown_ones_are_not_confirmed() -> None:
    table = table_with("first")
    for n in range(MOST_RUNS):
        table.enter({"suffice_run": f"r{n}"})
    assert not table.end("first")
    assert table.end("r1")
    assert table.enter(None) is None
    assert table.enter({"other": 1}) is None
    assert table.readings("nobody", 0) is None


@pytest.mark.parametrize(
    ("arguments", "n", "message"),
    [
        ({"suffice_run": ""}, 1, "1 to 256 characters"),
        ({"suffice_run": 7}, 1, "1 to 256 characters"),
        ({"suffice_run": "r", "suffice_text": "x" * 257}, 1, "suffice_text"),
        ({"suffice_run": "r", "suffice_tag": 3}, 1, "suffice_tag"),
        ({"suffice_run": "r"}, 2, "n must be 1, not 2"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_arguments(arguments, n)


def test_set_ups_that_could_tear_a_text_are_refused_in_one_sentence() -> None:
    plain = {"tensor_parallel": 1, "pipeline_parallel": 1, "speculates": False}
    assert refusal(**plain) is None  # type: ignore[arg-type]
    check_arguments({"x": 1}, 4)
    for changed in ({"tensor_parallel": 2}, {"pipeline_parallel": 2}, {"speculates": True}):
        assert (refusal(**plain | changed) or "").startswith("suffice-vllm: ")  # type: ignore[arg-type]
