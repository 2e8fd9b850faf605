"""The same traffic in four kinds of log is read as the same calls.

The shapes are written after the projects' documentation and sources, none was taken from a live system:
OpenAI API reference ("Chat", "Batch"); docs.litellm.ai, "StandardLoggingPayload Specification" and the
proxy's spend logs; langfuse.com docs, "Public API" and "Blob Storage Export Field Reference"; vLLM,
vllm/entrypoints/logger.py.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.replay.logs import FORMATS, READERS, LoggedCall, parse_moment, read_logs
from tests.drawn import examples

AT_S = 1_760_000_000.0


@dataclass(frozen=True)
class Requested:
    """One call as it was, before anybody logged it."""

    question: str
    answer: str
    thought: str = ""
    prompt_tokens: int = 12
    completion_tokens: int = 7
    at_s: float = AT_S

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.question}]

    @property
    def message(self) -> dict[str, str]:
        output = {"role": "assistant", "content": self.answer}
        return output | ({"reasoning_content": self.thought} if self.thought else {})

    @property
    def response(self) -> dict[str, Any]:
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {
            "id": "c1",
            "object": "chat.completion",
            "model": "m",
            "created": int(self.at_s),
            "choices": [{"index": 0, "message": self.message, "finish_reason": "stop"}],
            "usage": usage | {"total_tokens": sum(usage.values())},
        }

    @property
    def iso(self) -> str:
        return datetime.fromtimestamp(self.at_s, UTC).isoformat().replace("+00:00", "Z")


TRAFFIC = (
    Requested("2 + 2?", "4"),
    Requested("2 + 2?", "5", completion_tokens=9, at_s=AT_S + 10),
    Requested('It\'s "3"\nor 4?', 'it\'s\n"3"', thought="first 4\nno: 3\n", completion_tokens=30, at_s=AT_S + 4000),
)


def line(value: object) -> str:
    return json.dumps(value) + "\n"


def openai_pair(a: Requested) -> str:
    request = {"model": "m", "messages": a.messages}
    return line({"timestamp": a.at_s, "request": request, "response": a.response})


def openai_batch(a: Requested) -> str:
    body = {"model": "m", "messages": a.messages}
    answered = {"status_code": 200, "request_id": "r", "body": a.response}
    return line({"custom_id": "x", "created_at": a.iso, "body": body, "response": answered, "error": None})


def litellm_payload(a: Requested) -> str:
    return line(
        {
            "id": "c1",
            "trace_id": "t",
            "call_type": "acompletion",
            "response_cost": 0.0,
            "status": "success",
            "total_tokens": a.prompt_tokens + a.completion_tokens,
            "prompt_tokens": a.prompt_tokens,
            "completion_tokens": a.completion_tokens,
            "startTime": a.at_s,
            "endTime": a.at_s + 1,
            "model": "m",
            "cache_hit": False,
            "messages": a.messages,
            "response": a.response,
        }
    )


def litellm_spend(a: Requested) -> str:
    return line(
        {
            "request_id": "c1",
            "call_type": "acompletion",
            "spend": 0.0,
            "startTime": a.iso,
            "endTime": a.iso,
            "prompt_tokens": a.prompt_tokens,
            "completion_tokens": a.completion_tokens,
            "model": "m",
            "cache_hit": "False",
            "messages": json.dumps(a.messages),
            "response": json.dumps(a.response),
        }
    )


def langfuse_api(a: Requested) -> str:
    return line(
        {
            "id": "o",
            "traceId": "t",
            "type": "GENERATION",
            "startTime": a.iso,
            "model": "m",
            "input": a.messages,
            "output": a.message,
            "usageDetails": {"input": a.prompt_tokens, "output": a.completion_tokens},
        }
    )


def langfuse_export(a: Requested) -> str:
    started = datetime.fromtimestamp(a.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    return line(
        {
            "id": "o",
            "trace_id": "t",
            "type": "GENERATION",
            "start_time": started,
            "model": "m",
            "input": json.dumps({"messages": a.messages}),
            "output": json.dumps(a.message),
            "usage_details": {"input": a.prompt_tokens, "output": a.completion_tokens, "total": 1},
        }
    )


JSON_LOGS: dict[str, tuple[str, Callable[[Requested], str]]] = {
    "openai": ("openai", openai_pair),
    "openai-batch": ("openai", openai_batch),
    "litellm": ("litellm", litellm_payload),
    "litellm-spend": ("litellm", litellm_spend),
    "langfuse-api": ("langfuse", langfuse_api),
    "langfuse-export": ("langfuse", langfuse_export),
}


def expected(traffic: tuple[Requested, ...]) -> list[tuple[object, ...]]:
    return [(a.answer, a.thought, a.prompt_tokens, a.completion_tokens, a.at_s, "m") for a in traffic]


def facts(calls: list[LoggedCall]) -> list[tuple[object, ...]]:
    return [(c.texts[0], c.thoughts[0], c.prompt_tokens, c.completion_tokens, c.at_s, c.model) for c in calls]


@pytest.mark.parametrize("name", JSON_LOGS)
def test_a_json_log_is_told_by_itself_and_read_in_full(name: str, tmp_path: Path) -> None:
    form, write = JSON_LOGS[name]
    file = tmp_path / "log.jsonl"
    file.write_text("".join(map(write, TRAFFIC)), "utf-8")
    log = read_logs([file])
    assert log.formats == [form]
    assert facts(log.calls) == expected(TRAFFIC)
    first, second, third = (c.prompt for c in log.calls)
    assert first == second != third


def vllm_lines(a: Requested, name: str, *, newer: bool) -> str:
    head = datetime.fromtimestamp(a.at_s, UTC).strftime("INFO %m-%d %H:%M:%S [logger.py:42] ")
    output = f"<think>{a.thought}</think>{a.answer}" if a.thought else a.answer
    ids, out = list(range(a.prompt_tokens)), list(range(a.completion_tokens))
    requested = (
        f"{head}Request {name} details: prompt: {a.question!r}, prompt_token_ids: {ids}, prompt_embeds shape: None.\n"
        f"{head}Received request {name}: params: SamplingParams(n=1, temperature=0.7), lora_request: None.\n"
        if newer
        else f"{head}Received request {name}: prompt: {a.question!r}, params: SamplingParams(n=1), "
        f"prompt_token_ids: {ids}, prompt_embeds shape: None, lora_request: None.\n"
    )
    report = f"{head}Generated response {name}"
    delta = f"{report} (streaming delta): output: '4', output_token_ids: [1], finish_reason: None\n"
    whole = f"{report}: output: {output!r}, output_token_ids: {out}, finish_reason: stop\n"
    return requested + delta + whole + f"{head}Engine 000: Avg prompt throughput: 1.0 tokens/s\n"


@pytest.mark.parametrize("newer", [False, True])
def test_vllm_lines_are_told_and_read(newer: bool, tmp_path: Path) -> None:
    file = tmp_path / "vllm.log"
    file.write_text("".join(vllm_lines(a, f"chatcmpl-{i}", newer=newer) for i, a in enumerate(TRAFFIC)), "utf-8")
    log = read_logs([file])
    assert log.formats == ["vllm"]
    result = [(c.texts[0], c.thoughts[0], c.prompt_tokens, c.completion_tokens) for c in log.calls]
    assert result == [row[:4] for row in expected(TRAFFIC)]
    times = [c.at_s for c in log.calls]
    assert None not in times
    since_first = [t - (times[0] or 0) for t in times if t is not None]  # no year is logged
    assert since_first == [a.at_s - AT_S for a in TRAFFIC]
    assert log.calls[0].prompt == log.calls[1].prompt != log.calls[2].prompt


def test_an_array_and_a_packed_file_are_read_like_lines(tmp_path: Path) -> None:
    rows = [json.loads(langfuse_api(a)) for a in TRAFFIC]
    (tmp_path / "a.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("".join(map(langfuse_api, TRAFFIC)).encode()))
    first, second = (read_logs([tmp_path / name]) for name in ("a.json", "b.jsonl.gz"))
    assert facts(first.calls) == facts(second.calls) == expected(TRAFFIC)


def test_what_is_no_finished_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    failed = json.loads(litellm_payload(TRAFFIC[0])) | {"status": "failure", "response": {}}
    cached = json.loads(litellm_payload(TRAFFIC[0])) | {"cache_hit": True}
    embedding = {"call_type": "aembedding", "status": "success", "response": {"data": []}, "response_cost": 0}
    file = tmp_path / "log.jsonl"
    file.write_text(
        "not json\n" + line(failed) + line(cached) + line(embedding) + "[1]\n" + litellm_payload(TRAFFIC[0]), "utf-8"
    )
    log = read_logs([file])
    assert (len(log.calls), log.n_records, log.n_left_out) == (1, 6, 5)


def test_several_choices_and_tags_in_the_text_are_taken_apart(tmp_path: Path) -> None:
    body = TRAFFIC[0].response
    body["choices"] = [
        {"message": {"content": "<think>so\n</think>4"}},
        {"message": {"content": [{"type": "text", "text": "5"}], "reasoning": "hm"}},
        {"text": "6"},
    ]
    file = tmp_path / "log.jsonl"
    file.write_text(line({"request": {"prompt": "p"}, "response": body}), "utf-8")
    (call,) = read_logs([file]).calls
    assert call.texts == ("4", "5", "6")
    assert call.thoughts == ("so\n", "hm", "")


@pytest.mark.parametrize("text", ["", "hello\n", '{"a": 1}\n', "[1, 2", '{"choices": []}\n'])
def test_a_file_that_is_no_log_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"x\.log: "):
        read_logs([file])


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_logs([tmp_path / "none.jsonl"])


KEYS = [
    "request",
    "response",
    "choices",
    "message",
    "content",
    "usage",
    "prompt_tokens",
    "type",
    "input",
    "output",
    "messages",
    "startTime",
    "status",
    "cache_hit",
    "usageDetails",
    "body",
    "reasoning",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize("name", READERS)
@given(item=st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6))
@settings(max_examples=examples(100))
def test_no_record_breaks_a_reader(name: str, item: dict[str, Any]) -> None:
    call = READERS[name](item)
    assert call is None or (call.texts and len(call.texts) == len(call.thoughts))


def test_every_format_that_the_command_offers_is_read() -> None:
    from suffice.cli.offline.estimate import estimate

    (offered,) = (one.type for one in estimate.params if one.name == "as_format")
    assert isinstance(offered, click.Choice)
    assert tuple(offered.choices) == FORMATS == ("openai", "litellm", "langfuse", "vllm")


@pytest.mark.parametrize(
    ("given_as", "seconds"),
    [
        (AT_S, AT_S),
        (AT_S * 1000, AT_S),
        ("2025-10-09T08:53:20Z", AT_S),
        ("2025-10-09 08:53:20.000000", AT_S),
        ("2025-10-09T10:53:20+02:00", AT_S),
        ("yesterday", None),
        (None, None),
        (True, None),
        (-1, None),
    ],
)
def test_a_moment_may_be_written_in_many_ways(given_as: object, seconds: float | None) -> None:
    assert parse_moment(given_as) == seconds
