"""A callback in LiteLLM's own proxy ends a stream once it suffices, and the model behind the proxy is let go."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_process import GatewayProcess
from tests.house.tree import ROOT
from tests.loop.streaming_model import streaming_model
from tests.loop.test_scripts import QUIET

PROXY = ROOT / "build" / "loop-litellm" / "bin" / "litellm"
N_PARAGRAPHS = 60
START_S = 300.0
CALLBACK = """
from suffice import Governor
from suffice_loop.litellm import SufficeCallback

callback = SufficeCallback(Governor.connect({gateway!r}, route="stream", timeout_s=30))
"""
CONFIG = """
model_list:
  - model_name: scripted
    litellm_params: {{model: openai/scripted, api_base: "{model}/v1", api_key: unused}}
litellm_settings:
  callbacks: [in_proxy.callback]
  num_retries: 0
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
"""


@contextlib.contextmanager
def proxy(folder: Path, *, model: str, gateway: str) -> Iterator[str]:
    """Start LiteLLM's proxy in front of a model, with the callback."""
    (folder / "in_proxy.py").write_text(CALLBACK.format(gateway=gateway), encoding="utf-8")
    (folder / "config.yaml").write_text(CONFIG.format(model=model), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "contrib" / "suffice-loop" / "src", folder)))
    around = os.environ | QUIET | {"PYTHONPATH": path}
    command = [str(PROXY), "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "proxy.txt").open("wb") as output:
        process = subprocess.Popen(command, env=around, cwd=folder, stdout=output, stderr=output)
    try:
        url, end_s = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while time.monotonic() < end_s and process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health/liveliness", timeout=5):
                break
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_the_callback_ends_the_stream_and_the_proxy_closes_the_upstream(tmp_path: Path) -> None:
    if not PROXY.is_file():
        pytest.skip("litellm is not installed; make loop installs it")
    route: dict[str, Any] = {"kind": "rounds", "policy": {"policy": "stable-answer", "streak": 2}}
    route |= {"mode": "enforce", "uncertified": True, "audit_share": 0.0}
    settings = {"upstreams": {"unused": {"url": "http://127.0.0.1:9"}}, "routes": {"stream": route}}
    with (
        streaming_model({"v1": ["Vienna"] + ["Danube"] * N_PARAGRAPHS}) as (url_of_model, model),
        GatewayProcess.serving(tmp_path, settings) as gateway,
        proxy(tmp_path, model=url_of_model, gateway=gateway.url) as url,
    ):
        body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "Which river?"}]}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            chunks = [json.loads(line[6:]) for line in reply if line.startswith(b"data: {")]
        assert model.wait_for_end("v1"), (tmp_path / "proxy.txt").read_text(encoding="utf-8")[-2_000:]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text.split() == ["Vienna", "Danube", "Danube"]
    assert [chunk["choices"][0].get("finish_reason") for chunk in chunks][-1] == "stop"
    assert model.left == {"v1"}
    assert model.n_written["v1"] < N_PARAGRAPHS / 2
