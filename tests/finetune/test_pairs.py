"""Training lines: no prompt on both sides, nothing twice, no key; closing is preferred where it kept the answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice_finetune.pairs import CutRun, LineFormat, StopRecord, holds_secret, make_pairs, prompt_group

STOP = StopRecord(policy_version="p-1", certified=True, level=7, step=3, n_steps=9, seen="audit", model="m")
CUT = CutRun(
    messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 6 * 7?"}),
    thought="6 * 7 is 42.",
    rest=" Let me check: 42.",
    answer="It is 42.",
    stopped_answer="It is 42.",
    full_answer="It is 42.",
    kept=True,
    labelled=True,
    stop=STOP,
)
LOST = replace(CUT, thought="6 * 7 is 48?", stopped_answer="48", kept=False)
PREFER = LineFormat(format="preference", val_share=0.0)


def cut_run(question: str, **changes: object) -> CutRun:
    return replace(CUT, messages=({"role": "user", "content": question},), **changes)  # type: ignore[arg-type]


def test_a_supervised_line_is_a_chat_that_common_trainers_read() -> None:
    (line,) = make_pairs([CUT], LineFormat(val_share=0.0)).train
    assert line["messages"] == [
        *CUT.messages,
        {"role": "assistant", "content": "<think>\n6 * 7 is 42.\n</think>\n\nIt is 42."},
    ]
    (line,) = make_pairs([CUT], LineFormat(val_share=0.0, thought_as="field")).train
    assert line["messages"][-1] == {
        "role": "assistant",
        "reasoning_content": "6 * 7 is 42.",
        "content": "It is 42.",
    }


def test_every_line_says_who_stopped_it_where_and_on_what_proof() -> None:
    (line,) = make_pairs([CUT], LineFormat(val_share=0.0)).train
    assert line["stop"] == {
        "policy_version": "p-1",
        "certified": True,
        "level": 7,
        "step": 3,
        "n_steps": 9,
        "seen": "audit",
        "model": "m",
        "exact": True,
    }
    assert (line["cut"], line["labelled"]) == ("kept", True)


def test_closing_is_chosen_where_it_kept_the_answer_and_going_on_where_it_lost_it() -> None:
    kept, lost = make_pairs([CUT, LOST], PREFER).train
    assert kept["prompt"] == lost["prompt"] == list(CUT.messages)
    assert kept["chosen"][0]["content"].endswith("42.\n</think>\n\nIt is 42.")
    assert "Let me check" in kept["rejected"][0]["content"]
    assert "Let me check" in lost["chosen"][0]["content"]
    assert lost["rejected"][0]["content"].endswith("48?\n</think>\n\n48")


def test_a_preference_needs_both_ways_and_says_so() -> None:
    result = make_pairs([replace(CUT, rest=None), replace(CUT, stopped_answer=None), replace(CUT, rest="  ")], PREFER)
    assert not result.train
    assert result.left_out.total() == 3
    assert all("which a preference needs" in why for why in result.left_out)


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (replace(CUT, messages=()), "no prompt"),
        (cut_run("  "), "no prompt"),
        (replace(CUT, thought="\n"), "no thought before the stop"),
        (replace(CUT, answer=""), "no answer to teach"),
        (replace(CUT, thought="so </think> it is"), "a tag inside the thought"),
        (cut_run("my key is sk-abcdefghijklmnop1234"), "holds what looks like a key"),
        (replace(CUT, rest="password: hunter2hunter2"), "holds what looks like a key"),
        (
            replace(CUT, messages=({"role": "user", "content": [{"type": "text", "text": "AKIAABCDEFGHIJKLMNOP"}]},)),
            "holds what looks like a key",
        ),
        (
            replace(
                CUT,
                messages=(
                    {"role": "user", "content": "hi"},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"function": {"arguments": '{"token": "ghp_abcdefghijklmnopqrstuv"}'}}],
                    },
                ),
            ),
            "holds what looks like a key",
        ),
    ],
)
def test_what_is_no_lesson_is_counted_with_its_reason(cut: CutRun, why: str) -> None:
    result = make_pairs([cut], LineFormat())
    assert (result.train, result.val) == ([], [])
    assert dict(result.left_out) == {why: 1}


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN RSA PRIVATE KEY-----",
        "Authorization: Bearer abcdefghijklmnopqrstuvwxyz",
        "api_key=abcdef123456",
        r"{\"api_key\": \"abcdef123456\"}",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        '{"password": "correcthorse"}',
        "glpat-abcdefghijklmnopqrst",
        "xoxb-123456789012-abcdefg",
    ],
)
def test_keys_of_many_makes_are_seen(text: str) -> None:
    assert holds_secret(text)


@pytest.mark.parametrize(
    "text",
    ["What is a private key?", "The bearer of this letter", "Tokens: 12", "my password is secret", "skip the API key"],
)
def test_talk_of_keys_is_none(text: str) -> None:
    assert not holds_secret(text)


def test_planted_duplicates_are_written_once_and_never_cross_the_split() -> None:
    """Two hundred prompts, each in several spellings, with several thoughts, and everything twice."""
    spellings = (str, str.upper, lambda q: f"  {q}\n", lambda q: q.replace(" ", "\u00a0 "))
    cuts = [
        cut_run(spell(f"What is {n} plus one?"), thought=f"thought {k}", answer=f"{n + 1}")
        for n in range(200)
        for k in range(2)
        for spell in spellings
        for _ in range(2)
    ]
    result = make_pairs(cuts, LineFormat(val_share=0.2))
    assert len(result.train) + len(result.val) == 400
    assert result.left_out == {"the same prompt, thought and answer again": len(cuts) - 400}
    groups = [{line["prompt_group"] for line in lines} for lines in (result.train, result.val)]
    assert not groups[0] & groups[1]
    assert len(groups[0] | groups[1]) == 200
    assert 20 <= len(groups[1]) <= 60


TEXTS = st.text(max_size=30)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS, st.booleans()), max_size=8), st.sampled_from(["tags", "field"]))
def test_any_text_makes_lines_that_are_json_with_the_thought_in_them(
    given_texts: list[tuple[str, str, str, bool]], thought_as: str
) -> None:
    cuts = [cut_run(q, thought=t, answer=a, kept=k) for q, t, a, k in given_texts]
    result = make_pairs(cuts, LineFormat(thought_as=thought_as))  # type: ignore[arg-type]
    lines = [*result.train, *result.val]
    assert len(lines) + result.left_out.total() == len(cuts)
    for line in lines:
        again = json.loads(json.dumps(line))
        assert again["messages"][0]["role"] == "user"
        assert again["prompt_group"] == prompt_group(again["messages"][:-1])
