"""Records the streams of model servers anew. What is written to tests/wire/streams/ is what came over the socket,
without HTTP's own framing.

    python -m tests.wire.record                                       llama.cpp, with the extra `local` installed
    python -m tests.wire.record vllm http://127.0.0.1:8700            a running engine, see tests/engines
    python -m tests.wire.record sglang http://127.0.0.1:8701

One run at a time, temperature 0. llama.cpp runs the small local model, whose weights are fetched if need be.
"""

from __future__ import annotations

import datetime
import http.client
import importlib.metadata
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from suffice_demo.local import weights
from suffice_demo.local.server import LocalServer, ServerSpec
from tests.wire.read import write

CHAT = "/v1/chat/completions"
QUESTION = [
    {"role": "user", "content": "What is 20 + 3?"},
    {"role": "assistant", "reasoning_content": "20 + 3 = 23.\n", "content": "23"},
    {"role": "user", "content": "What is 30 + 4?"},
]
BASE = {"model": "local", "temperature": 0, "seed": 1}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}},
}
THOUGHT = "<think>30 + 4 = 34.\n</think>"


Watch = Callable[[bytes], bool]  # sees what came so far and says whether to read on


def chat(**fields: Any) -> dict[str, Any]:
    return {**BASE, "messages": QUESTION, "max_tokens": 40} | fields


# name → (path, body)
REQUESTED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat_reasoning": (CHAT, chat(**USAGE)),
    "chat_inline_tags": (CHAT, chat(reasoning_format="none", **USAGE)),
    "chat_no_usage": (CHAT, chat(stream=True)),
    "chat_body": (CHAT, chat()),
    "chat_logprobs": (CHAT, chat(logprobs=True, top_logprobs=2, **(USAGE | {"max_tokens": 6}))),
    "chat_prefill": (
        CHAT,
        chat(
            **(USAGE | {"messages": [*QUESTION, {"role": "assistant", "content": THOUGHT}]}),
            continue_final_message=True,
            add_generation_prompt=False,
        ),
    ),
    "chat_budget": (CHAT, chat(reasoning_budget_tokens=8, reasoning_budget_message="\n", **USAGE)),
    "chat_control": (CHAT, chat(reasoning_control=True, reasoning_budget_message="\n", **USAGE)),
    "chat_cancelled": (CHAT, chat(**(USAGE | {"max_tokens": 400}))),
    "completions_raw": ("/v1/completions", {**BASE, **USAGE, "max_tokens": 12}),
    "completions_body": ("/v1/completions", {**BASE, "prompt": "One, two, three,", "max_tokens": 8}),
    "completion_native": (
        "/completion",
        {"prompt": "One, two, three,", "n_predict": 8, "stream": True, "temperature": 0},
    ),
    "responses": ("/v1/responses", {**BASE, "input": "How much is 2 + 3?", "stream": True, "max_output_tokens": 40}),
    "responses_body": ("/v1/responses", {**BASE, "input": "How much is 2 + 3?", "max_output_tokens": 40}),
    "messages": ("/v1/messages", {**BASE, "messages": QUESTION[:1], "max_tokens": 40, "stream": True}),
    "messages_body": ("/v1/messages", {**BASE, "messages": QUESTION[:1], "max_tokens": 40}),
    "count_tokens": ("/v1/messages/count_tokens", {"model": "local", "messages": QUESTION[:1]}),
}


def to_the_end(_: bytes) -> bool:
    return True


def ask(port: int, path: str, body: dict[str, Any], watch: Watch = to_the_end) -> bytes:
    """The body of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    got = b""
    while watch(got) and (part := response.read1(65536)):
        got += part
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {got[:300]!r}")
    connection.close()
    return got


def end_thought(port: int) -> Watch:
    """Ends the thought once, after some of it was seen."""
    done = threading.Event()

    def watch(got: bytes) -> bool:
        if not done.is_set() and got.count(b"reasoning_content") >= 5:
            done.set()
            name = json.loads(got.split(b"data: ")[1].split(b"\n")[0])["id"]
            ask(port, f"{CHAT}/control", {"id": name, "action": "reasoning_end"})
        return True

    return watch


def events(body: bytes) -> Iterator[Any]:
    """The JSON values in a body: one, or one an event."""
    if body.startswith(b"{"):
        yield json.loads(body)
        return
    for line in body.decode().splitlines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def expected(path: str, body: bytes) -> dict[str, Any]:
    """What a client must read: written without any of the product's own code."""
    text = thought = ""
    result: dict[str, Any] = {}
    for value in events(body):
        for choice in value.get("choices") or []:
            output = choice.get("delta") or choice.get("message") or {}
            text += output.get("content") or choice.get("text") or ""
            thought += output.get("reasoning_content") or output.get("reasoning") or ""
            result["finish"] = choice.get("finish_reason") or result.get("finish")
        if value.get("usage") and path != "/v1/messages":
            result["usage"] = value["usage"]
        if (value.get("response") or {}).get("usage"):
            result["usage"] = value["response"]["usage"]
        for holder in (value.get("message") or {}, value) if path == "/v1/messages" else ():
            result["usage"] = result.get("usage", {}) | (holder.get("usage") or {})
        if "tokens_predicted" in value:
            cached = {"cached_tokens": value["timings"]["cache_n"]}
            result["usage"] = {"prompt_tokens": value["tokens_evaluated"], "prompt_tokens_details": cached}
            result["usage"]["completion_tokens"] = value["tokens_predicted"]
    return {"text": text, "thought": thought, **result}


PREFILLED = [*QUESTION, {"role": "assistant", "content": THOUGHT}]
RAW = "<|im_start|>user\nWhat is 30 + 4?<|im_end|>\n<|im_start|>assistant\n" + THOUGHT
COUNTED = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
# The streams that vLLM and SGLang have in common.
ENGINE_REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat_reasoning": (CHAT, chat(**USAGE)),
    "chat_continuous_usage": (CHAT, chat(**USAGE | COUNTED)),
    "chat_no_usage": (CHAT, chat(stream=True)),
    "chat_body": (CHAT, chat()),
    "chat_logprobs": (CHAT, chat(logprobs=True, top_logprobs=2, **(USAGE | {"max_tokens": 6}))),
    "chat_cut": (CHAT, chat(**(USAGE | {"max_tokens": 6}))),
    "chat_cancelled": (CHAT, chat(**(USAGE | {"max_tokens": 400, "ignore_eos": True}))),
    "completions_raw": ("/v1/completions", {**BASE, **USAGE, "prompt": RAW, "max_tokens": 12}),
    "completions_body": ("/v1/completions", {**BASE, "prompt": "One, two, three,", "max_tokens": 8}),
    "responses": ("/v1/responses", {**BASE, "input": "How much is 2 + 3?", "stream": True, "max_output_tokens": 40}),
    "responses_body": ("/v1/responses", {**BASE, "input": "How much is 2 + 3?", "max_output_tokens": 40}),
    "messages": ("/v1/messages", {**BASE, "messages": QUESTION[:1], "max_tokens": 40, "stream": True}),
    "messages_body": ("/v1/messages", {**BASE, "messages": QUESTION[:1], "max_tokens": 40}),
}
# … and those that each has for itself.
ENGINES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "vllm": {
        "chat_prefill": (
            CHAT,
            chat(**(USAGE | {"messages": PREFILLED}), continue_final_message=True, add_generation_prompt=False),
        ),
        "chat_budget": (CHAT, chat(thinking_token_budget=4, **USAGE)),
        "chat_schema": (CHAT, chat(structured_outputs={"json": SCHEMA}, **(USAGE | {"max_tokens": 60}))),
    },
    "sglang": {
        "chat_prefill": (
            CHAT,
            chat(**(USAGE | {"messages": [*QUESTION, {"role": "assistant", "content": THOUGHT[7:]}]}))
            | {"continue_final_message": True, "separate_reasoning": False},
        ),
    },
}
NAMES = {"vllm": "vLLM", "sglang": "SGLang"}


def record_engine(name: str, url: str) -> None:
    """Record a running engine. What it refuses is printed and left out."""
    port = int(url.rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/version" if name == "vllm" else "/get_server_info")
    version = json.loads(connection.getresponse().read())["version"]
    for shape, (path, body) in (ENGINE_REQUESTS | ENGINES[name]).items():
        watch: Watch = (lambda got: got.count(b"data: ") < 12) if shape == "chat_cancelled" else to_the_end
        try:
            got = ask(port, path, body, watch)
        except SystemExit as refusal:
            print("left out:", shape, refusal)
            continue
        head = {
            "engine": f"{NAMES[name]} {version}, on CPU",
            "evidence": "recorded",
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            "source": f"python -m tests.wire.record {name}, Qwen2.5-Coder-0.5B-Instruct with think tags added",
            "request": f"POST {path} {json.dumps(body)}",
            "expect": json.dumps(expected(path, got), ensure_ascii=False),
        }
        print(write(f"{name}_{shape}", head, got).name, len(got), head["expect"][:200])


def main() -> int:
    """Record everything of one engine."""
    if len(sys.argv) > 1:
        record_engine(*sys.argv[1:])
        return 0
    model = weights.fetch("smol")
    spec = ServerSpec(model_path=model, template="think", alias="local", n_parallel=2)
    engine = f"llama.cpp, by xllamacpp {importlib.metadata.version('xllamacpp')}"
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()

    def record(port: int, name: str, path: str, body: dict[str, Any], template: str, watch: Watch) -> None:
        got = ask(port, path, body, watch)
        head = {
            "engine": engine,
            "evidence": "recorded",
            "date": today,
            "source": f"python -m tests.wire.record, SmolLM2-135M-Instruct with {template}",
            "request": f"POST {path} {json.dumps(body)}",
            "expect": json.dumps(expected(path, got), ensure_ascii=False),
        }
        print(write(f"llama_cpp_{name}", head, got).name, len(got), head["expect"][:150])

    with LocalServer(spec) as server:
        port = int(server.url.rpartition(":")[2])
        prompt = json.loads(ask(port, "/apply-template", {"messages": QUESTION}))["prompt"]
        REQUESTED["completions_raw"][1]["prompt"] = prompt + THOUGHT.removeprefix("<think>")
        for name, (path, body) in REQUESTED.items():
            watch: Watch = to_the_end
            if name == "chat_control":
                watch = end_thought(port)
            if name == "chat_cancelled":
                watch = lambda got: got.count(b"data: ") < 12
            record(port, name, path, body, "the template think", watch)
    with LocalServer(ServerSpec(model_path=model, alias="local", n_parallel=2)) as server:
        port = int(server.url.rpartition(":")[2])
        body = chat(messages=QUESTION[:1], tools=[TOOL], tool_choice="required", **(USAGE | {"max_tokens": 60}))
        record(port, "chat_tools", CHAT, body, "its own template", to_the_end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
