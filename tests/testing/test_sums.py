"""The model server for newcomers: one command serves it, and its sums are right but for one in seven."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

from suffice_testing import FakeUpstream, ServerBehaviour
from suffice_testing.chain import SumsModel
from tests.gateway_process import GatewayProcess


def ask(url: str, question: str) -> dict[str, Any]:
    body = {"model": "sums", "messages": [{"role": "user", "content": question}]}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as reply:
        result: dict[str, Any] = json.load(reply)
    return result


def test_one_command_serves_it_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "suffice_testing", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            result = re.search(r"on (http://127\.0\.0\.1:\d+);", process.stdout.readline())
            assert result is not None
            assert ask(result[1], "What is 17 * 24?")["choices"][0]["message"]["content"] == "408"
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize(("question", "answer"), [("17 * 24", 408), ("17+24?", 41), ("first 1 + 1, then 5 - 9", -4)])
def test_it_is_wrong_once_in_seven_answers_to_one_prompt(question: str, answer: int) -> None:
    with FakeUpstream.in_thread(SumsModel()) as fake:
        output = [ask(fake.url, question)["choices"][0]["message"]["content"] for _ in range(7)]
    assert [one == str(answer) for one in output] == [True] * 6 + [False]


def test_what_is_no_sum_is_answered_all_the_same() -> None:
    with FakeUpstream.in_thread(SumsModel()) as fake:
        assert "only do sums" in ask(fake.url, "Name the capital of France.")["choices"][0]["message"]["content"]


def test_behind_the_gateway_a_policy_stops_its_checking(tmp_path: Any) -> None:
    route = {
        "upstream": "local",
        "scorer": "number",
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "policy": {"policy": "stable-answer", "streak": 2},
    }
    with FakeUpstream.in_thread(SumsModel(), ServerBehaviour(slots=4)) as fake:
        settings = {
            "upstreams": {"local": {"url": fake.url, "driver": "llama.cpp"}},
            "routes": {"sums": route},
            "control": {"enabled": False},
            "console": {"enabled": False},
        }
        with GatewayProcess.serving(tmp_path, settings) as gateway:
            reply = ask(gateway.url, "What is 17 * 24?")
    assert (reply["suffice"]["stopped"], reply["choices"][0]["message"]["content"].strip()) == (True, "408")
