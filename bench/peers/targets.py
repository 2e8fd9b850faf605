"""Starts everything that is measured and says where to ask: Suffice as `suffice serve`, two relays, the peers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from peers.load import Target
from peers.processes import HERE, environment, free_port, process, wait_for_port

CHAT = "/v1/chat/completions"
WORDS = {"type": "object", "properties": {"words": {"type": "string"}}, "required": ["words"]}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": WORDS}}
# Measured beside a chat, by name: where it is asked, and with which fields.
FORMS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "messages": ("/v1/messages", {}),
    "responses": ("/v1/responses", {}),
    "tools": (CHAT, {"tools": [ADD]}),
    "schema": (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "words", "schema": WORDS}}}),
}
SETTINGS = """
[upstreams.up]
url = "{upstream}"
driver = "llama.cpp"
slots = 8

[routes.off]
upstream = "up"
match = {{ header = "off" }}
mode = "off"

[routes.observe]
upstream = "up"
match = {{ header = "observe" }}
mode = "observe"
scorer = "number"
policy = {{ policy = "stable-answer", streak = 1000, no_hedges = true }}

[routes.enforce]
upstream = "up"
match = {{ header = "enforce" }}
mode = "enforce"
uncertified = true
scorer = "number"
policy = {{ policy = "stable-answer", streak = 1000, no_hedges = true }}

[store]
url = "{store}"
"""
LITELLM = """
model_list:
  - model_name: m
    litellm_params:
      model: openai/m
      api_base: {upstream}/v1
      api_key: unused
general_settings:
  dangerously_permit_weak_or_unset_master_key: true  # it listens on this machine only
"""

Absent = dict[str, str]


@contextlib.contextmanager
def upstream(folder: Path) -> Iterator[str]:
    """The model server's base address."""
    port, log = free_port(), folder / "upstream.log"
    with process([sys.executable, HERE / "upstream.py", str(port)], log) as child:
        wait_for_port(port, child, log)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def relay(program: str, name: str, base: str, folder: Path) -> Iterator[list[Target]]:
    """One of the relays in this folder."""
    port, log = free_port(), folder / f"{program}.log"
    with process([sys.executable, HERE / f"{program}.py", str(port), base], log) as child:
        wait_for_port(port, child, log)
        yield [Target(name=name, url=f"http://127.0.0.1:{port}{CHAT}", pid=child.pid)]


NAMES = {"off": "ungoverned", "observe": "observe", "enforce": "enforce, policy on"}
KEY = "unused"  # what the client sends
EVERYTHING = """
[keys.bench]
key_env = "BENCH_KEY"
routes = ["off", "observe", "enforce"]

[telemetry]
log_format = "json"
otlp_endpoint = "{collector}"
"""


@contextlib.contextmanager
def suffice(
    base: str,
    folder: Path,
    title: str = "Suffice",
    *,
    more: str = "",
    store: str = "",
    source: Path | None = None,
    first: str = "",
    with_forms: bool = False,
) -> Iterator[list[Target]]:
    """One gateway, three routes.

    more    settings besides the usual ones
    store   URL of its log; "": a SQLite file
    source  folder of another version's package; None: this one's
    first   Python that its process runs before it starts
    with_forms  ask governed requests in the other APIs and with tools or a schema, too
    """
    port, log, file = free_port(), folder / f"{title}.log", folder / f"{title}.toml"
    text = SETTINGS.format(upstream=base, store=store or f"sqlite:///{folder / title}.db") + more
    file.write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", f"{first}\nfrom suffice.cli.main import main; main()", "serve"]
    env = {"BENCH_KEY": KEY, "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental"}
    env |= {} if source is None else {"PYTHONPATH": str(source)}
    with process([*command, "--config", file, "--port", str(port)], log, env=env) as child:
        wait_for_port(port, child, log)
        url = f"http://127.0.0.1:{port}{CHAT}"
        yield [
            Target(name=f"{title}, {name}", url=url, pid=child.pid, headers={"x-suffice-route": route})
            for route, name in NAMES.items()
        ] + [
            Target(
                name=f"{title}, {NAMES[route]}, {form}",
                url=f"http://127.0.0.1:{port}{path}",
                pid=child.pid,
                headers={"x-suffice-route": route},
                fields=fields,
            )
            for route in ("observe", "enforce")
            for form, (path, fields) in (FORMS if with_forms else {}).items()
        ]


@contextlib.contextmanager
def everything(base: str, folder: Path, store: str) -> Iterator[list[Target]]:
    """Suffice as a platform team runs it: keys, JSON lines, traces of all requests, and the log where `store` says."""
    port, log = free_port(), folder / "collector.log"
    with process([sys.executable, HERE / "collector.py", str(port)], log) as child:
        wait_for_port(port, child, log)
        more = EVERYTHING.format(collector=f"http://127.0.0.1:{port}")
        with suffice(base, folder, "Suffice with all on", more=more, store=store) as targets:
            yield targets


@contextlib.contextmanager
def tensorzero(base: str, folder: Path) -> Iterator[list[Target]]:
    """TensorZero's embedded gateway in its own environment."""
    log = folder / "tensorzero.log"
    command = [environment("tensorzero"), HERE / "tensorzero_gateway.py", base, folder / "tensorzero.toml"]
    with process(command, log) as child:
        assert child.stdout is not None
        url = next((line.strip() for line in child.stdout if line.startswith("http")), None)
        if url is None:
            raise RuntimeError("did not start; see its log")
        model = "tensorzero::model_name::m"
        yield [Target(name="TensorZero (Rust)", url=f"{url}/chat/completions", pid=child.pid, model=model)]


@contextlib.contextmanager
def litellm(base: str, folder: Path) -> Iterator[list[Target]]:
    """LiteLLM's proxy in its own environment: one worker, no database, no callbacks."""
    python = environment("litellm")
    port, log, config = free_port(), folder / "litellm.log", folder / "litellm.yaml"
    config.write_text(LITELLM.format(upstream=base), encoding="utf-8")
    command = [python.parent / "litellm", "--config", config, "--host", "127.0.0.1", "--port", str(port)]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
    with process([*command, "--telemetry", "False"], log, env=env) as child:
        wait_for_port(port, child, log, within_s=120)
        yield [Target(name="LiteLLM proxy", url=f"http://127.0.0.1:{port}{CHAT}", pid=child.pid)]


def start(
    stack: contextlib.ExitStack,
    base: str,
    folder: Path,
    *,
    peers: bool,
    store: str = "",
    before: Path | None = None,
) -> tuple[list[Target], Absent]:
    """Everything that can be started, and in one sentence each why the rest cannot.

    store   where the gateway with everything on has its log; "": in a SQLite file
    before  checkout of an earlier version, which is measured too
    """
    found = [Target(name="direct", url=base + CHAT)]
    found += stack.enter_context(relay("socket_relay", "bare socket relay", base, folder))
    found += stack.enter_context(relay("byte_relay", "bare byte relay", base, folder))
    found += stack.enter_context(relay("decoding_relay", "decoding relay", base, folder))
    found += stack.enter_context(suffice(base, folder, with_forms=True))
    found += stack.enter_context(everything(base, folder, store))
    if before is not None:
        found += stack.enter_context(suffice(base, folder, "Suffice before", source=before / "src"))
    absent: Absent = {}
    wanted: dict[str, Callable[[str, Path], contextlib.AbstractContextManager[list[Target]]]] = {
        "TensorZero (Rust)": tensorzero,
        "LiteLLM proxy": litellm,
    }
    for name, begin in wanted.items():
        if not peers:
            absent[name] = "left out (--no-peers)"
            continue
        try:
            found += stack.enter_context(begin(base, folder))
        except (RuntimeError, OSError) as error:
            absent[name] = str(error)
    return found, absent
