"""Promises of the fake model: every way to close a thought gives one and the same answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice_testing import Fault, Reply, Samples, ScriptedThought, ToolCall, cut
from suffice_testing.generate import Completion, NotMyThought, Token
from suffice_testing.prompt import apply_template, count_words, prefix_of_message, prefix_of_prompt, token_ids
from suffice_testing.reply import FakeRequest, merged
from tests.drawn import examples
from tests.fake_models import EchoNonce, FirstFails

QUESTION = [{"role": "user", "content": "what is 2 + 2?"}]
CHAIN = ScriptedThought(
    [("first I guess\n", "3"), ("then I count to 4\n", "4", 0.8), ("so I check it\n", "4!", 0.95)], "4!"
)


def request(path: str = "/chat/completions", nth: int = 0, nth_same: int = 0, **body: Any) -> FakeRequest:
    body.setdefault("messages", QUESTION)
    prefix = prefix_of_prompt(body["prompt"]) if "prompt" in body else prefix_of_message(body["messages"])
    return FakeRequest(
        method="POST",
        path=path,
        target=path,
        headers=(),
        raw_body=b"",
        body=body,
        nth=nth,
        nth_same=nth_same,
        prefix=prefix,
    )


def run(seen: FakeRequest, says: Any = CHAIN, budget: int | None = None) -> tuple[Completion, list[Token]]:
    started = Completion(says(seen), seen, index=0, budget_tokens=budget)
    tokens = []
    while (token := started.next()) is not None:
        tokens.append(token)
    return started, tokens


def text_of(tokens: list[Token], *channels: str) -> str:
    return "".join(t.text for t in tokens if t.channel in (channels or ("answer",)))


def raw(thought: str) -> FakeRequest:
    prompt = apply_template(QUESTION, continue_last=False, opens_thought=True) + thought
    return request("/completions", prompt=prompt)


def prefill(thought: str) -> FakeRequest:
    return request(messages=[*QUESTION, {"role": "assistant", "content": "<think>" + thought}])


def test_a_full_run_says_everything() -> None:
    ended, tokens = run(request())
    assert text_of(tokens, "reasoning") == "first I guess\nthen I count to 4\nso I check it\n"
    assert text_of(tokens) == "4!"
    assert ended.finish_reason == "stop"
    assert ended.n_tokens == len(tokens) == ended.n_reasoning_tokens + 1


THOUGHTS = {
    "first": "3",
    "first I guess\n": "3",
    "first I guess\nthen I count": "3",
    "first I guess\nthen I count to 4\n": "4",
    "first I guess\nthen I count to 4\nso I check it": "4!",
}


@pytest.mark.parametrize("thought", sorted(THOUGHTS))
@pytest.mark.parametrize("closing", ["</think>", "\n</think>", "\n\n</think>\n\n"])
@pytest.mark.parametrize("make", [raw, prefill])
def test_every_way_to_close_a_thought_gives_the_answer_of_its_last_whole_step(
    thought: str, closing: str, make: Any
) -> None:
    _, tokens = run(make(thought.rstrip() + closing))
    assert text_of(tokens, "reasoning", "tag", "answer") == THOUGHTS[thought]


@pytest.mark.parametrize("n_tokens", [0, 2, 3, 7, 8, 12])
def test_control_and_budget_close_it_like_a_probe_at_the_same_place(n_tokens: int) -> None:
    full = [t.text for t in run(request())[1]]
    _, probed = run(raw("".join(full[:n_tokens]) + "</think>"))
    _, budgeted = run(request(), budget=n_tokens)
    controlled = Completion(CHAIN(request()), request(), index=0, budget_tokens=None)
    tokens = [controlled.next() for _ in range(n_tokens)]
    assert controlled.end_reasoning()
    assert not controlled.end_reasoning()
    while (token := controlled.next()) is not None:
        tokens.append(token)
    assert tokens == budgeted
    assert [t for t in budgeted if t.channel == "answer"] == probed
    assert controlled.cut_by == "control"


def test_an_open_thought_goes_on_where_the_request_left_it() -> None:
    _, tokens = run(raw("first I gu"))
    assert text_of(tokens, "reasoning") == "ess\nthen I count to 4\nso I check it\n"
    assert text_of(tokens, "tag", "answer") == "</think>4!"
    message = {"role": "assistant", "reasoning_content": "first I guess", "content": ""}
    _, tokens = run(request(messages=[*QUESTION, message]))
    assert text_of(tokens, "reasoning").split()[0] == "then"


def test_a_thought_that_is_not_its_own_is_refused() -> None:
    with pytest.raises(NotMyThought):
        run(raw("quite another thought</think>"))


def test_words_of_the_answer_in_the_request_are_not_said_again() -> None:
    says = ScriptedThought([("a", "The answer is 4")], "x")
    assert text_of(run(raw("a</think>The answer"), says)[1]) == " is 4"
    assert text_of(run(raw("a</think>Answer:"), says)[1]) == "The answer is 4"


def test_inline_thoughts_stand_in_tags() -> None:
    def inline(_: FakeRequest) -> Reply:
        return Reply(reasoning=("a", "b"), answer=("c",), reasoning_field="inline")

    ended, tokens = run(request(), inline)
    assert text_of(tokens, "reasoning", "tag", "answer") == "<think>ab</think>c"
    assert (ended.n_tokens, ended.n_reasoning_tokens) == (5, 4)
    assert text_of(run(request(), inline, budget=0)[1], "reasoning", "tag", "answer") == "c"
    opened = Reply(reasoning=("a",), answer=("c",), reasoning_field="inline-opened")
    _, tokens = run(request(), lambda _: opened)
    assert text_of(tokens, "reasoning", "tag", "answer") == "a</think>c"


def test_caps_stops_and_thinking_switched_off() -> None:
    ended, tokens = run(request(max_tokens=4))
    assert (len(tokens), ended.finish_reason) == (4, "length")
    assert text_of(tokens) == ""
    plain = Samples(["one two\nthree"])
    ended, tokens = run(request(stop="\n"), plain)
    assert (text_of(tokens), ended.finish_reason, ended.n_tokens) == ("one two", "stop", 3)
    ended, _ = run(request(stop=["e t", ""]), plain)  # found across two tokens: what was said stays
    assert (text_of(ended.shown), ended.n_tokens) == ("one", 2)
    _, tokens = run(request(chat_template_kwargs={"enable_thinking": False}))
    assert (text_of(tokens, "reasoning"), text_of(tokens)) == ("", "3")


def test_tool_calls_come_behind_the_text() -> None:
    call = ToolCall(id="t", name="f", arguments=('{"a":', "1}"))
    ended, tokens = run(request(), lambda _: Reply(answer=("hm",), tool_calls=(call,)))
    assert [(t.channel, t.text, t.opens_call) for t in tokens] == [
        ("answer", "hm", False),
        ("tool", '{"a":', True),
        ("tool", "1}", False),
    ]
    assert ended.finish_reason == "tool_calls"


def test_samples_take_turns_and_nonces_are_echoed() -> None:
    says = Samples(["a", "b"])
    assert [text_of(run(request(nth_same=n), says)[1]) for n in range(3)] == ["a", "b", "a"]
    seen = request(messages=[{"role": "user", "content": "nonce=n17 please"}])
    assert text_of(run(seen, EchoNonce(n_answer=2))[1]) == "n17 n17 "


def test_first_fails_stops_failing() -> None:
    says = FirstFails(CHAIN, (Fault(status=503),))
    assert merged(says(request(nth=0)).faults).status == 503
    assert says(request(nth=1)).faults == ()


def test_faults_add_up_and_the_later_one_counts() -> None:
    both = merged(
        (
            Fault(die_after=3, die_how="fin"),
            Fault(piece_bytes=2),
            Fault(done=False),
            Fault(die_after=5, die_how="error_frame"),
        )
    )
    assert both == Fault(die_after=5, die_how="error_frame", piece_bytes=2, done=False)


messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user"]),
            "content": st.text("ab \n北", max_size=12) | st.just([{"type": "text", "text": "a b"}]) | st.none(),
        }
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=examples(80))
@given(tokens=messages, thought=st.text("ab \n", max_size=12))
def test_the_template_costs_nothing_and_a_prefix_is_read_back(tokens: list[Any], thought: str) -> None:
    seen = request(messages=tokens)
    prompt = apply_template(tokens, continue_last=False, opens_thought=True)
    assert len(count_words(prompt)) == len(token_ids(prompt)) == len(seen.text.split())
    prefix = prefix_of_prompt(prompt + thought + "</think>yes")
    assert prefix is not None
    assert (prefix.reasoning.strip(), prefix.closed, prefix.answer) == (thought.strip(), True, "yes")
    assert len(count_words(prompt + thought)) == len(seen.text.split()) + len(thought.split())


@settings(max_examples=examples(80))
@given(text=st.text("ab \n北\u200d", max_size=20))
def test_cutting_loses_nothing(text: str) -> None:
    assert "".join(cut(text)) == text
