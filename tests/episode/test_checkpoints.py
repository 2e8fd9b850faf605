"""The gate before a probe: joined steps lose nothing, and margins are those of the next token at a sentence's end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.episode.chain_reader import Segmenter
from suffice.episode.checkpoints import Checkpoint, CheckpointGate, Proposer, margin_to_end
from suffice.policy.base import build_policy
from suffice.settings import Steps
from suffice.upstream.wire import TokenLogprob
from tests.drawn import examples

WORDS = ["so", " the answer", "\n", ". ", " is 4", "!\n", " \n"]
TOKENS = st.lists(st.sampled_from(WORDS), max_size=60)
STEPS = Steps(min_tokens=2, growth=1.0)


def proposer(*, every: int = 0) -> Proposer:
    return Proposer(build_policy({"policy": "text-rule", "pattern": "answer"}), every=every)


def listed(token: str, end: float | None) -> TokenLogprob:
    """A token of probability 1/2, beside an end of thought of this log-probability; None: it is not listed."""
    top = [(token, math.log(0.5)), ("~", -9.0)]
    return TokenLogprob(token, math.log(0.5), tuple(top if end is None else [*top, (" </think>", end)]))


def gated(gate: CheckpointGate, tokens: Sequence[TokenLogprob], *, reads: bool = True) -> list[Checkpoint]:
    """The steps of a thought of one chunk a token."""
    segmenter, steps = Segmenter(STEPS), list[Checkpoint | None]()
    for token in tokens:
        steps.append(gate.read([token] if reads else []))
        point = segmenter.feed(token.token, 1)
        steps.append(None if point is None else gate.offer(point))
    return [step for step in steps if step is not None]


def plain(words: Sequence[str]) -> list[Checkpoint]:
    segmenter = Segmenter(STEPS)
    return [point for word in words if (point := segmenter.feed(word, 1)) is not None]


@given(TOKENS)
@settings(max_examples=examples(100))
def test_without_a_proposer_every_checkpoint_is_a_step(words: list[str]) -> None:
    tokens = [listed(word, None) for word in words]
    assert gated(CheckpointGate(close_tag="</think>"), tokens, reads=False) == plain(words)


@given(TOKENS, st.booleans(), st.integers(0, 3))
@settings(max_examples=examples(150))
def test_joined_steps_lose_nothing_and_end_at_checkpoints(words: list[str], reads: bool, every: int) -> None:
    gate = CheckpointGate(close_tag="</think>", proposer=proposer(every=every))
    steps, points = gated(gate, [listed(word, None) for word in words], reads=reads), plain(words)
    ends = {point.prefix: point.tokens_used for point in points}
    used, before = 0, ""
    for number, step in enumerate(steps, 1):
        used += step.tokens
        assert step.index == number
        assert ends[step.prefix] == step.tokens_used == used
        assert step.prefix == before + step.text
        before = step.prefix


@given(TOKENS, st.integers(1, 3))
@settings(max_examples=examples(100))
def test_a_step_ends_where_the_proposer_would_stop_and_at_the_latest_after_so_many_checkpoints(
    words: list[str], every: int
) -> None:
    points = plain(words)
    steps = gated(
        CheckpointGate(close_tag="</think>", proposer=proposer(every=every)),
        [listed(w, None) for w in words],
        reads=False,
    )
    expected, passed = [], 0
    for point in points:
        passed += 1
        if "answer" in point.text or passed == every:
            expected.append(point.prefix)
            passed = 0
    assert [step.prefix for step in steps] == expected


def test_the_margin_is_that_of_the_token_after_the_sentence() -> None:
    output = [
        ("2 and 2", None),
        (" make 4.\n", -0.1),
        ("So", math.log(0.25)),
        (" 4.", -0.2),
        ("\n", -3.0),
        ("And", None),
        (" x.\n", None),
    ]
    steps = gated(CheckpointGate(close_tag="</think>"), [listed(*one) for one in output])
    assert [step.text for step in steps] == ["2 and 2 make 4.\n", "So 4.\n"]
    # ln 0.5 - ln 0.25: the end of thought was listed behind "make 4.", as an alternative to "So".
    assert math.isclose(steps[0].end_margin or -1, math.log(2))
    assert steps[1].end_margin is None  # behind the second line it was not listed, though inside it was


def test_an_end_of_thought_that_is_the_best_token_has_no_margin_to_it() -> None:
    assert margin_to_end([("</think>", -0.1), ("So", -3.0)], "</think>") == 0.0
    assert margin_to_end([("So", -0.1), ("</", -1.1)], "</think>") == 1.0
    assert margin_to_end([("So", -0.1), ("<", -1.1), (" ", -1.5), ("</b", -2.0)], "</think>") is None
    assert margin_to_end([], "</think>") is None


def test_a_margin_proposes_where_it_is_small() -> None:
    brake = Proposer(build_policy({"policy": "think-brake", "threshold": 0.5}), every=0)
    output = [
        ("one", None),
        (" two.\n", None),
        ("three", -5.0),
        (" four.\n", None),
        ("five", math.log(0.4)),
        (" six", None),
    ]
    steps = gated(CheckpointGate(close_tag="</think>", proposer=brake), [listed(*one) for one in output])
    assert [step.text for step in steps] == ["one two.\nthree four.\n"]
    assert math.isclose(steps[0].end_margin or -1, math.log(0.5 / 0.4))
