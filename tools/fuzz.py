"""Feeds damaged and hostile bytes to every parser of bytes from outside, and measures what they cost.

    python tools/fuzz.py --minutes 10 --seed 1

It fails on an exception that the parser does not document, and on an input that costs more CPU time than the parser
may take. Inputs are valid ones, cut, damaged and repeated up to 1 MiB. With the same seed and `--inputs` it tries
the same inputs again.
"""

from __future__ import annotations

import argparse
import gzip
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suffice.console import exchange as console
from suffice.episode.chain_reader import first_choice, safe_cut
from suffice.episode.extra_calls import AnswerOnly, entropy_of, margin_of
from suffice.episode.ledger import CallAccount
from suffice.errors import SufficeError, UpstreamError
from suffice.gateway.auth import Caller, KeyRing
from suffice.gateway.exchange import MAX_HEADERS
from suffice.gateway.feedback_form import read_feedback
from suffice.gateway.request_parsing import (
    AT_ONCE_BYTES,
    MAX_HEAD_CHARS,
    check_body_headers,
    check_head,
    parse_json,
    read_chat,
)
from suffice.gateway.rounds_service import read_decide
from suffice.model import artefact
from suffice.model.artefact import StopModel, TrainingRecord
from suffice.model.ensemble import Ensemble, Linear
from suffice.policy.folded_version import read_version
from suffice.replay.traces.read import own_traces, read_traces
from suffice.review import imported_feedback
from suffice.settings import Server, parse_settings
from suffice.settings.checks import SCORE_FIELDS
from suffice.upstream.allowance import read_limits
from suffice.upstream.assemble import Assembler, read_answer
from suffice.upstream.connection import READ_BYTES
from suffice.upstream.pattern import TextPattern
from suffice.upstream.wire import SseSplitter, decode_chunk, logprobs_of
from suffice.wiring.files import read_toml
from suffice_testing.trace_files import write_traces_parquet

MIB = 2**20
ON_LOOP_MS = 50.0  # for 1 MiB, and at least this much for anything shorter
ASIDE_MS = 400.0  # … of what a thread or a command reads: it delays its own sender
STREAM_MS = ON_LOOP_MS * MIB / READ_BYTES  # … of what is read in pieces, between which others are served
SIZES = (200, 4_000, AT_ONCE_BYTES, MIB)
LIMITS = Server()
KEYS = KeyRing({"key": Caller(id="caller")})
TOKENS = [
    b"1e308,",
    b"0.1,",
    b"9" * 400 + b",",
    b"9" * 5_000,
    b"[],",
    b"{},",
    b"[",
    b"{",
    b'{"":',
    b'{"a":1},',
    b'"",',
    b"]",
    b"}",
    b'"',
    b"\\",
    b'\\"',
    b"\\ud800",
    b"\\u0000",
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b"\n\n",
    b"data:",
    b"data: {}\n\n",
    b":",
    b",",
    b" ",
    b"\t",
    b"null,",
    b"NaN,",
    b"-Infinity",
    b"true,",
    b"='",
    b'"""',
    b"'''",
    b"[[a]]\n",
    b"a=[",
    b"#",
    b"&a [*a]",
    "\u0301".encode(),
    "\u200d".encode(),
    "\U0001f1e6".encode(),
    b"<think>",
    b"</think>",
    b'"usage":',
    b'"index":9223372036854775807,',
    b'"model":',
    b"=&",
    b"%41=",
    b"; ",
    b"a: b\r\n",
]


@dataclass(slots=True)
class Parser:
    """One parser: how it is called, what it may raise, what it may cost."""

    read: Callable[[bytes], object]
    seeds: list[bytes]
    raises: tuple[type[Exception], ...] = (SufficeError,)
    ms_per_mib: float = ON_LOOP_MS
    n_inputs: int = 0
    worst_ms: float = 0.0  # for 1 MiB
    faults: list[str] = field(default_factory=list)


def _chat_body(raw: bytes) -> object:
    return read_chat(raw, LIMITS)


def stream(raw: bytes) -> object:
    """What a governed run does with the bytes of an upstream."""
    splitter, assembler, pattern = SseSplitter(), Assembler(), TextPattern()
    account, answer = CallAccount(purpose="main"), AnswerOnly("<think>", ("<think>", "</think>"), opened=False)
    for at in range(0, len(raw), READ_BYTES):
        for frame in splitter.feed(raw[at : at + READ_BYTES]):
            if frame.data is None or pattern.run_in(frame.raw, 0)[0]:
                continue
            chunk = decode_chunk(frame.data)
            choice = first_choice(chunk)
            if choice is not None:
                answer.read(choice, account)
                for token in logprobs_of(choice):
                    entropy_of(token.top)
                    margin_of(token)
            pattern.learn(frame, chunk, without_usage=False)
            assembler.add(frame.data)
    splitter.close()
    return assembler.result()


def _tail(raw: bytes) -> object:
    end = raw[-128 * 1024 :]
    return [read_answer(raw[:16_384], end, events=events) for events in (False, True)]


def _head(raw: bytes) -> object:
    lines = [line.partition(b":")[::2] for line in raw[: 2 * MAX_HEAD_CHARS].split(b"\n")][: MAX_HEADERS + 1]
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1").strip()) for name, value in lines]
    KEYS.find(headers, x_api_key=True)
    read_limits(headers, wall_s=0.0)
    scope: dict[str, Any] = {"method": "GET", "path": "/", "query_string": raw[:65_536], "headers": lines}
    assert console.read_head(scope).cookies is not None
    check_body_headers(headers, 1)
    check_head(headers)
    return headers


def _form(raw: bytes) -> object:
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        console._form({"content-type": kind}, raw[: console.MOST_BODY_BYTES])  # noqa: SLF001
    return None


def _labels(raw: bytes) -> object:
    body = parse_json(raw, LIMITS)
    readers: tuple[Callable[[dict[str, Any]], object], ...] = (
        imported_feedback.read_event,
        read_feedback,
        lambda found: imported_feedback.read_scores(found, {"quality": SCORE_FIELDS[0]}, {}),
    )
    refused: list[SufficeError] = []
    for read in readers:
        try:
            read(dict(body))
        except SufficeError as error:
            refused.append(error)
    return refused


def _traces(suffix: str) -> Callable[[bytes], object]:
    file = Path(tempfile.mkdtemp(prefix="suffice-fuzz-")) / f"set{suffix}"

    def read(raw: bytes) -> object:
        file.write_bytes(raw)
        return [len(batch.offset) for batch in read_traces([file])]

    return read


def _parquet_of(lines: bytes) -> bytes:
    folder = Path(tempfile.mkdtemp(prefix="suffice-fuzz-"))
    (folder / "set.jsonl").write_bytes(lines)
    write_traces_parquet(folder / "set.parquet", read_traces([folder / "set.jsonl"]))
    return (folder / "set.parquet").read_bytes()


CHAT = (
    b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "2+2\\n\\u00e9?"}]}],'
    b' "temperature": 0.7, "stream": true, "stream_options": {"include_usage": true}, "suffice": {"samples": 4}}'
)
DECIDE = (
    b'{"route": "r", "question": "q", "step": {"index": 1, "answer": "7", "tokens": 12, "signals": {"logprobs":'
    b' [-0.1, -2.5]}, "sources": ["text"]}, "metadata": {"task": "t"}}'
)
SSE = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"so "},"logprobs":'
    b'{"content":[{"token":"so","logprob":-0.25,"bytes":[115],"top_logprobs":[{"token":"a","logprob":-1.5}]}]}}]}\n\n'
    b': ping\n\ndata: {"choices":[{"index":0,"delta":{"content":"<think>4","tool_calls":[{"index":0,"id":"t",'
    b'"function":{"name":"f","arguments":"{}"}}]},"finish_reason":null}],"usage":null}\r\n\r\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"total_tokens":9}}'
    b"\n\ndata: [DONE]\n\n"
)
LABEL_STUDIO = (
    b'{"action": "ANNOTATION_CREATED", "project": {"id": 1}, "task": {"data": {"suffice_episode": "e", "answer_a": "1",'
    b' "answer_b": "2"}}, "annotation": {"id": 5, "completed_by": 2, "result": [{"from_name": "verdict", "value":'
    b' {"choices": ["A is right"]}}, {"from_name": "rating_a", "value": {"rating": 4}}]}}'
)
LANGFUSE = (
    b'{"data": [{"id": "s", "name": "correct", "dataType": "BOOLEAN", "value": 1, "source": "ANNOTATION",'
    b' "traceId": "e", "metadata": "{\\"suffice_episode_id\\": \\"e\\"}"}, {"id": "t", "name": "quality"}]}'
)
SETTINGS = b"""
[server]
port = 8400
[upstreams.main]
url = "http://127.0.0.1:1/v1"
[routes.r]
upstream = "main"
match = { model = "*" }
policy = { policy = "answer_convergence", k = 3 }
"""
MODEL = artefact.dump_model(
    StopModel(
        features=("step", "logit(confidence)"),
        suffices=Ensemble((Linear((0.5, 0.25), 0.1),)),
        trained=TrainingRecord(
            n_episodes=9, n_questions=3, digest="d", target="as-good", seed=0, versions=(("numpy", "2"),)
        ),
    )
)


def parsers() -> dict[str, Parser]:
    """All of them."""
    with gzip.open(own_traces("reasoning")) as file:
        runs = b"".join(file.readline() for _ in range(3))
    return {
        "chat body": Parser(_chat_body, [CHAT], ms_per_mib=ASIDE_MS),
        "chat body, short": Parser(lambda raw: _chat_body(raw[:AT_ONCE_BYTES]), [CHAT]),
        "decide body": Parser(lambda raw: read_decide(parse_json(raw, LIMITS)), [DECIDE], ms_per_mib=ASIDE_MS),
        "labels": Parser(_labels, [LABEL_STUDIO, LANGFUSE], ms_per_mib=ASIDE_MS),
        "console form": Parser(_form, [b'{"name": "a", "on": true, "n": 0.5}', b"a=1&b=%20x"]),
        "heads": Parser(_head, [b"host: a\nauthorization: Bearer key\ncookie: a=b; c=d\nretry-after: 6"]),
        "stream": Parser(stream, [SSE], raises=(UpstreamError,), ms_per_mib=STREAM_MS),
        "stream, a read": Parser(lambda raw: stream(raw[:READ_BYTES]), [SSE], raises=(UpstreamError,)),
        "end of an answer": Parser(_tail, [SSE, b'{"id": "c", "usage": {"prompt_tokens": 3}}']),
        "cut of a thought": Parser(lambda raw: safe_cut(raw.decode("utf-8", "replace"), "\u0301"), [b"so it is 4"]),
        "settings": Parser(
            lambda raw: parse_settings(read_toml(raw.decode("utf-8", "replace"))), [SETTINGS], ms_per_mib=2_000
        ),
        "artefact": Parser(artefact.load_model, [MODEL], ms_per_mib=ASIDE_MS),
        "version": Parser(lambda raw: read_version("a", raw.decode("utf-8", "replace")), [MODEL], ms_per_mib=ASIDE_MS),
        "traces, JSON lines": Parser(_traces(".jsonl"), [runs], ms_per_mib=2_000),
        "traces, Parquet": Parser(_traces(".parquet"), [_parquet_of(runs)], ms_per_mib=2_000),
    }


def mutated(seed: bytes, draw: random.Random) -> bytes:
    """A seed cut, damaged, and in half of the cases with a piece repeated up to one of SIZES."""
    raw = bytearray(seed)
    for _ in range(draw.choice((0, 1, 1, 2, 8))):
        at = draw.randrange(len(raw) + 1)
        end = min(len(raw), at + draw.choice((0, 0, 1, 4, 40)))
        raw[at:end] = draw.choice((draw.choice(TOKENS), bytes([draw.randrange(256)]), bytes(raw[end : end + 30]), b""))
    if draw.random() < 0.5:
        size, at = draw.choice(SIZES), draw.randrange(len(raw) + 1)
        piece = draw.choice((draw.choice(TOKENS), draw.choice(TOKENS) + draw.choice(TOKENS), bytes(raw[at : at + 60])))
        raw[at:at] = (piece or b"[") * (size // max(1, len(piece)))
    if draw.random() < 0.1:
        del raw[draw.randrange(len(raw) + 1) :]
    return bytes(raw[: MIB + len(seed)])


def tried(parser: Parser, raw: bytes) -> None:
    """Parse once; what costs too much is parsed three times more, and the best counts."""
    parser.n_inputs += 1
    cost_ms, allowed_ms = float("inf"), parser.ms_per_mib * max(1.0, len(raw) / MIB)
    for _ in range(4):
        started_s = time.process_time()
        try:
            parser.read(raw)
        except parser.raises:
            pass
        except Exception as error:  # noqa: BLE001 - what is looked for
            parser.faults.append(f"{type(error).__name__}: {error!s:.80} from {raw[:120]!r}… ({len(raw)} bytes)")
            return
        cost_ms = min(cost_ms, (time.process_time() - started_s) * 1e3)
        if cost_ms <= allowed_ms:
            break
    parser.worst_ms = max(parser.worst_ms, cost_ms / max(1.0, len(raw) / MIB))
    if cost_ms > allowed_ms:
        parser.faults.append(f"{cost_ms:.0f} ms of {allowed_ms:.0f} allowed for {raw[:120]!r}… ({len(raw)} bytes)")


def main(arguments: list[str] | None = None) -> int:
    """Fuzz, print the table, and return the exit status."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--minutes", type=float, default=1.0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--inputs", type=int, help="inputs for each parser, instead of a time")
    options.add_argument("--slack", type=float, default=1.0, help="factor for what a parser may cost, on slow machines")
    options.add_argument("--only", default="", help="parsers whose name has this in it")
    told = options.parse_args(arguments)
    chosen = {name: one for name, one in parsers().items() if told.only in name}
    for parser in chosen.values():
        parser.ms_per_mib *= told.slack
    draws = {name: random.Random(f"{told.seed} {name}") for name in chosen}
    ends_s, n_rounds = time.monotonic() + told.minutes * 60, 0
    while n_rounds < told.inputs if told.inputs else time.monotonic() < ends_s:
        n_rounds += 1
        for name, parser in chosen.items():
            tried(parser, mutated(draws[name].choice(parser.seeds), draws[name]))
    print(f"{'parser':<20} {'inputs':>8} {'worst ms/MiB':>13} {'allowed':>8} {'faults':>7}")
    for name, one in chosen.items():
        print(f"{name:<20} {one.n_inputs:>8} {one.worst_ms:>13.1f} {one.ms_per_mib:>8.0f} {len(one.faults):>7}")
    for name, one in chosen.items():
        for fault in dict.fromkeys(one.faults[:5]):
            print(f"{name}: {fault}", file=sys.stderr)
    return int(any(one.faults for one in chosen.values()))


if __name__ == "__main__":
    sys.exit(main())
