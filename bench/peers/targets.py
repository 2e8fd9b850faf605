"""Starts everything that is measured and says where to ask: Suffice as `suffice serve`, two relays, the peers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from peers.load import Target
from peers.processes import HERE, environment, free_port, process, wait_for_port

CHAT = "/v1/chat/completions"
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
url = "sqlite:///{folder}/cost.db"
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


@contextlib.contextmanager
def suffice(base: str, folder: Path) -> Iterator[list[Target]]:
    """One gateway, three routes."""
    port, log = free_port(), folder / "suffice.log"
    (folder / "suffice.toml").write_text(SETTINGS.format(upstream=base, folder=folder), encoding="utf-8")
    command = [sys.executable, "-c", "from suffice.cli.main import main; main()", "serve"]
    with process([*command, "--config", folder / "suffice.toml", "--port", str(port)], log) as child:
        wait_for_port(port, child, log)
        names = {"off": "ungoverned", "observe": "observe", "enforce": "enforce, policy on"}
        yield [
            Target(
                name=f"Suffice, {name}",
                url=f"http://127.0.0.1:{port}{CHAT}",
                pid=child.pid,
                headers={"x-suffice-route": route},
            )
            for route, name in names.items()
        ]


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


def start(stack: contextlib.ExitStack, base: str, folder: Path, *, peers: bool) -> tuple[list[Target], Absent]:
    """Everything that can be started, and in one sentence each why the rest cannot."""
    found = [Target(name="direct", url=base + CHAT)]
    found += stack.enter_context(relay("socket_relay", "bare socket relay", base, folder))
    found += stack.enter_context(relay("byte_relay", "bare byte relay", base, folder))
    found += stack.enter_context(relay("decoding_relay", "decoding relay", base, folder))
    found += stack.enter_context(suffice(base, folder))
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
