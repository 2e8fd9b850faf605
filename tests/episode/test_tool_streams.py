"""No stop falls into a call, a JSON answer or a character, however a stream with tools is made and cut."""

from __future__ import annotations

import asyncio
import json
import os
import random
from typing import Any

import pytest

from suffice.scoring.base import build_scorer
from suffice.scoring.reply import written_reply
from suffice.settings import Steps
from tests.episode.runs import chunk, request, run_of
from tests.episode.test_reasoning import INLINE, cut, has_more_than_thought

FIELDS = ("reasoning", "reasoning_content", "thinking", "inline", "opened")
WORDS = ("so", " it", " is", "\n", ".\n\n", " 北京", "🙂", " 4", " {", '"a"', ":1}", "<", "</", "<tool", "call", " add")
TAGGED = '<tool_call>\n{"name": "add", "arguments": {"a": "x } ] \\" </think", "b": 2}}\n</tool_call>'
TAGS = ("<tool_call>", "</tool_call>")
SCORER = build_scorer("text")
DONE = b"data: [DONE]\n\n"
N_STREAMS = int(os.environ.get("N_TOOL_STREAMS", "10000"))


def pieces_of(text: str, draw: random.Random) -> list[str]:
    places = sorted(draw.sample(range(1, len(text)), min(len(text) - 1, draw.randrange(8)))) if len(text) > 1 else []
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def thought_of(draw: random.Random) -> list[str]:
    words = [draw.choice(WORDS) for _ in range(draw.randrange(1, 20))]
    if draw.random() < 0.3:
        words[draw.randrange(len(words) + 1) :] = [*pieces_of(TAGGED, draw), draw.choice(WORDS)]
    return words if "</think>" not in "".join(words) else ["so"]


def calls_of(draw: random.Random) -> list[tuple[str, Any]]:
    values = (1, 2.5, "x", 'a "quoted" }', [1, {"b": None}], "北")
    return [(f"f{draw.randrange(3)}", {"a": draw.choice(values)}) for _ in range(draw.randrange(1, 4))]


def call_frames(calls: list[tuple[str, Any]], draw: random.Random) -> list[bytes]:
    """The frames of parallel calls, each opened by its name, the rest interleaved in order."""
    frames: list[bytes] = []
    waiting: list[tuple[int, list[str]]] = []
    for index, (name, arguments) in enumerate(calls):
        opened = {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        frames.append(chunk({"tool_calls": [opened]}))
        waiting.append((index, pieces_of(json.dumps(arguments, ensure_ascii=draw.random() < 0.5), draw)))
    while waiting:
        index, parts = draw.choice(waiting)
        frames.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": parts.pop(0)}}]}))
        waiting = [one for one in waiting if one[1]]
    return frames


def stream_of(field: str, draw: random.Random) -> tuple[bytes, list[tuple[str, Any]], str]:
    """Return a whole stream's bytes, its calls, and the text of its answer."""
    key = "content" if field in INLINE else field
    words = thought_of(draw)
    opened, closed = (["<think>"] if field == "inline" else []), (["</think>"] if field in INLINE else [])
    frames = [chunk({"role": "assistant", "content": None})]
    frames += [chunk({key: word}) for word in (*opened, *words, *closed)]
    calls, answer, kind = list[tuple[str, Any]](), "", draw.randrange(4)
    if kind != 1:  # a text, a JSON answer or a call between tags, which the server has not parsed
        answer = draw.choice(('{"a": {"b": [1, "}"]}}', "It is 4", TAGGED))
        frames += [chunk({"content": piece}) for piece in pieces_of(answer, draw)]
    if kind == 2 and field not in INLINE:  # a second thought in the same turn
        frames += [chunk({key: word}) for word in thought_of(draw)]
    if kind in (1, 2):
        calls = calls_of(draw)
        frames += call_frames(calls, draw)
    return b"".join([*frames, chunk({}, "tool_calls" if calls else "stop"), DONE]), calls, answer


def has_open_call(text: str) -> bool:
    return text.rfind(TAGS[0]) > text.rfind(TAGS[1]) or any(text.endswith(TAGS[0][:n]) for n in range(1, len(TAGS[0])))


async def follow(field: str, draw: random.Random) -> int:
    """Check every moment of one stream; return at how many it could have been stopped."""
    raw, calls, answer = stream_of(field, draw)
    places = range(len(raw)) if draw.random() < 0.02 else [draw.randrange(len(raw)) for _ in range(draw.randrange(40))]
    steps = Steps(min_tokens=1, growth=1.0, max_tokens=3)
    run, client, ledger = run_of(cut(raw, list(places)), opened=field == "opened", steps=steps, scorer=SCORER)
    ledger.request = request(form="tools")
    n_stoppable, last_step = 0, 0
    while not run.reader.state.ended:
        points = await run.relay.advance()
        last_step = points[-1].index if points else last_step
        assert raw.startswith(client.raw)
        if not last_step or not run.reader.can_cut_at(last_step):
            continue
        n_stoppable += 1
        assert not has_more_than_thought(client, field)
        seen = client.joined("content" if field in INLINE else field)
        assert not has_open_call(seen)
        prefix, _ = run.reader.thought_at(last_step)
        assert not has_open_call(prefix)
        prefix.encode()  # no half of a character
    assert client.raw == raw
    assert ledger.degraded == []
    whole = [{"function": {"name": name, "arguments": json.dumps(made)}} for name, made in calls]
    expected = written_reply(answer, whole, "tools")
    assert expected is not None
    assert ledger.reply.answer == SCORER.extract(expected)
    return n_stoppable


async def follow_all(seeds: range) -> int:
    return sum([await follow(FIELDS[seed % len(FIELDS)], random.Random(seed)) for seed in seeds])


def test_no_stop_falls_into_a_call_or_json() -> None:
    assert asyncio.run(follow_all(range(300))) > 500


@pytest.mark.slow
def test_no_stop_of_ten_thousand_streams_falls_into_a_call_or_json() -> None:
    assert asyncio.run(follow_all(range(1_000, 1_000 + N_STREAMS))) > 1.5 * N_STREAMS
