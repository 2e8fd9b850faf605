"""Every adapter plays the same decision scripts, against one server and one model, and comes to the same decisions.

`make loop` installs what the adapters need, and runs this; without it, those whose framework is missing are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suffice import Governor
from suffice.settings import parse_settings
from tests.gateway_process import GatewayProcess
from tests.house.tree import ROOT
from tests.loop.players.plain import play
from tests.loop.players.playing import played, read_scripts
from tests.loop.scripted_model import scripted_model

SCRIPTS = read_scripts()
FRAMEWORKS = {
    "plain": "suffice",
    "langchain": "langchain",
    "langgraph": "langgraph",
    "openai_agents": "agents",
    "pydantic_ai": "pydantic_ai",
    "dspy": "dspy",
}
ENVIRONMENT = ROOT / "build" / "loop" / "bin" / "python"
TYPESCRIPT = ROOT / "contrib" / "suffice-loop" / "typescript"
QUIET = {"LANGSMITH_TRACING": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}


def has(module: str) -> bool:
    check = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([str(ENVIRONMENT), "-c", check], check=False).returncode == 0


def command(adapter: str) -> list[str]:
    """How to play the scripts with an adapter; skips the test if what it needs is not installed."""
    if adapter == "ai_sdk":
        if shutil.which("node") is None or not (TYPESCRIPT / "dist").is_dir():
            pytest.skip("the AI SDK is not installed; make loop installs it")
        return ["node", str(TYPESCRIPT / "dist" / "play.js"), str(TYPESCRIPT.parent / "scripts")]
    here = adapter == "plain"
    if not here and not (ENVIRONMENT.is_file() and has(FRAMEWORKS[adapter])):
        pytest.skip(f"{FRAMEWORKS[adapter]} is not installed; make loop installs it")
    return [sys.executable if here else str(ENVIRONMENT), "-m", f"tests.loop.players.{adapter}"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    routes = {name: script["route"] for name, script in SCRIPTS.items()}
    upstreams = {"unused": {"url": "http://127.0.0.1:9"}}
    folder = tmp_path_factory.mktemp("loop")
    with GatewayProcess.serving(folder, {"upstreams": upstreams, "routes": routes}) as serving:
        yield serving.url


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_library_decides_as_the_script_says(name: str, tmp_path: Path) -> None:
    script = SCRIPTS[name]
    settings = parse_settings({"routes": {name: script["route"]}, "store": {"url": f"sqlite:///{tmp_path}/log.db"}})
    with scripted_model(SCRIPTS) as (model, taken), Governor.open(settings, route=name) as governor:
        run = play(governor, script["question"], f"{model}/{name}/v1", name)
    assert played(run) | {"model_calls": taken[name]} == script["expected"]


@pytest.mark.parametrize("adapter", [*FRAMEWORKS, "ai_sdk"])
def test_an_adapter_decides_as_the_scripts_say(adapter: str, gateway: str) -> None:
    python_path = [ROOT / "src", ROOT, ROOT / "contrib" / "suffice-loop" / "src"]
    around = os.environ | QUIET | {"PYTHONPATH": os.pathsep.join(map(str, python_path))}
    with scripted_model(SCRIPTS) as (model, taken):
        done = subprocess.run(
            [*command(adapter), gateway, model], env=around, cwd=ROOT, capture_output=True, check=False, timeout=300
        )
    assert done.returncode == 0, done.stderr.decode()[-3_000:]
    results: dict[str, Any] = json.loads(done.stdout)
    expected = {name: script["expected"] for name, script in SCRIPTS.items()}
    assert {name: one | {"model_calls": taken[name]} for name, one in results.items()} == expected


def test_the_scripts_cover_what_an_adapter_can_get_wrong() -> None:
    outcomes = [script["expected"] for script in SCRIPTS.values()]
    assert {decision["action"] for one in outcomes for decision in one["decisions"]} == {"continue", "stop"}
    full = [one["model_calls"] == len(script["turns"]) for one, script in zip(outcomes, SCRIPTS.values(), strict=True)]
    assert {True, False} == set(full)
    assert all(one["answer"] for one in outcomes)


ADAPTERS = [*(TYPESCRIPT.parent / "src" / "suffice_loop").glob("*.py"), TYPESCRIPT / "src" / "suffice.ts"]


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.name)
def test_an_adapter_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120
