"""Envoy's external processor, against the protocol: there is no Envoy to install here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_process import GatewayProcess
from tests.house.tree import ROOT
from tests.loop.test_scripts import ENVIRONMENT, has

ROUTE: dict[str, Any] = {"kind": "rounds", "policy": {"policy": "stable-answer", "streak": 2}, "mode": "enforce"}


def test_a_streamed_answer_ends_once_it_suffices_and_all_else_passes(tmp_path: Path) -> None:
    if not (ENVIRONMENT.is_file() and has("envoy.service")):
        pytest.skip("xds-protos is not installed; make loop installs it")
    routes = {"stream": ROUTE | {"uncertified": True, "audit_share": 0.0}}
    settings = {"upstreams": {"unused": {"url": "http://127.0.0.1:9"}}, "routes": routes}
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "contrib" / "suffice-loop" / "src")))
    with GatewayProcess.serving(tmp_path, settings) as gateway:
        command = [str(ENVIRONMENT), "-m", "tests.loop.players.envoy", gateway.url]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, capture_output=True, check=False, timeout=300
        )
    assert done.returncode == 0, done.stderr.decode()[-3_000:]
    results = json.loads(done.stdout)
    for name in ("pieces", "whole"):
        result = results[name]
        assert result["ended"]
        assert result["kinds"] == ["request_headers", "request_body", "response_headers", "response_body"]
        *frames, done_frame, _ = result["body"].split("\n\n")
        deltas = [json.loads(frame[6:])["choices"][0] for frame in frames]
        assert "".join(one["delta"].get("content", "") for one in deltas).split() == ["Vienna", "Danube", "Danube"]
        assert (deltas[-1]["finish_reason"], done_frame) == ("stop", "data: [DONE]")
        assert result["sent"].startswith("\n\n".join(frames[:-1])), "what passed is what was sent, byte for byte"
    for name in ("not streamed", "not a chat"):
        assert results[name]["body"] == results[name]["sent"]
        assert results[name]["ended"]
