"""The model server in a child process: refuses what cannot be served, and never outlives its owner.

The tests marked `model` need weights in the cache (`make demo` puts them there) and skip without.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suffice_demo.local import LocalModelError
from suffice_demo.local.server import LocalServer, ServerSpec, check_spec, child_environment, template_names
from tests.local.cached import cached

OPEN, CLOSE = "<think>", "</think>"
EXAMPLE: list[dict[str, str]] = [
    {"role": "user", "content": "What is 20 + 3?"},
    {"role": "assistant", "reasoning_content": "20 + 3 = 23.\n", "content": "23"},
    {"role": "user", "content": "What is 30 + 4?"},
]


def gguf(folder: Path) -> Path:
    """A file that begins as a model does and holds none."""
    path = folder / "x.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00 and nothing more")
    return path


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def has_ended(pid: int, within_s: float = 60.0) -> bool:
    """Is the process gone, or only a zombie, in time?"""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def small() -> ServerSpec:
    return ServerSpec(model_path=cached("smol"), alias="smol", n_parallel=1, ctx_tokens_per_slot=256)


@pytest.fixture(scope="module")
def thinking(small: ServerSpec) -> Iterator[str]:
    """The address of a server with the template that opens a thought."""
    with LocalServer(replace(small, template="think")) as server:
        yield server.url


def test_a_missing_file_is_refused_before_a_process_starts(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError, match=r"none\.gguf: cannot be read \(No such file or directory\)"):
        LocalServer(ServerSpec(model_path=tmp_path / "none.gguf"))


def test_a_file_that_is_no_model_is_refused_with_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    with pytest.raises(LocalModelError, match="is not a GGUF file; it begins with b'<htm'"):
        check_spec(ServerSpec(model_path=tmp_path / "page.gguf"))


def test_an_unknown_template_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError, match="unknown template 'thikn'; known: think"):
        check_spec(ServerSpec(model_path=gguf(tmp_path), template="thikn"))


@pytest.mark.parametrize("field", ["n_parallel", "ctx_tokens_per_slot", "n_threads"])
def test_counts_below_one_are_refused(tmp_path: Path, field: str) -> None:
    values: dict[str, Any] = {field: 0}
    with pytest.raises(LocalModelError, match=f"{field}: got 0; at least 1"):
        check_spec(ServerSpec(model_path=gguf(tmp_path), **values))


def test_a_model_that_cannot_be_loaded_is_a_clear_error_and_leaves_no_process(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    server = LocalServer(ServerSpec(model_path=gguf(tmp_path)), log_path=tmp_path / "s.log", start_timeout_s=60)
    with pytest.raises(LocalModelError, match=r"x\.gguf did not start .*s\.log says: .*fail"):
        server.__enter__()
    assert not server.is_alive()
    with pytest.raises(LocalModelError, match="it is not running"):
        _ = server.pid


def test_a_server_that_is_not_running_has_no_address_and_can_be_stopped_twice(tmp_path: Path) -> None:
    server = LocalServer(ServerSpec(model_path=gguf(tmp_path)), log_path=tmp_path / "s.log")
    server.stop()
    server.stop()
    with pytest.raises(LocalModelError, match="use it in a `with` block"):
        _ = server.url


def test_compute_threads_sleep_while_they_wait_unless_the_user_says_otherwise() -> None:
    assert child_environment({})["OMP_WAIT_POLICY"] == "passive"
    assert child_environment({"OMP_WAIT_POLICY": "active"})["OMP_WAIT_POLICY"] == "active"
    assert child_environment({"A": "b"})["A"] == "b"


def test_the_thinking_template_is_there() -> None:
    assert "think" in template_names()


@pytest.mark.model
def test_it_answers_on_loopback_under_its_alias_and_ends_with_the_block(small: ServerSpec) -> None:
    with LocalServer(small) as server:
        assert server.url.startswith("http://127.0.0.1:")
        pid = server.pid
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
        reply = post(f"{server.url}/v1/chat/completions", body)
        assert reply["model"] == "smol"
        assert 1 <= reply["usage"]["completion_tokens"] <= 3
    assert has_ended(pid)


@pytest.mark.model
def test_the_small_models_own_template_is_the_common_one(small: ServerSpec) -> None:
    with LocalServer(small) as server:
        prompt = post(f"{server.url}/apply-template", {"messages": [{"role": "user", "content": "U"}]})["prompt"]
    assert prompt.endswith("<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.model
def test_a_crash_of_the_child_is_seen_and_does_not_take_the_owner_along(small: ServerSpec) -> None:
    with LocalServer(small) as server:
        os.kill(server.pid, signal.SIGSEGV)
        assert has_ended(server.pid)
        deadline = time.monotonic() + 60  # the first thread is a zombie while the others are still being ended
        while server.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not server.is_alive()


@pytest.mark.model
def test_the_child_ends_when_its_owner_is_killed(small: ServerSpec) -> None:
    program = (
        "import sys, time; from pathlib import Path; from suffice_demo.local.server import LocalServer, ServerSpec\n"
        "with LocalServer(ServerSpec(model_path=Path(sys.argv[1]), n_parallel=1, ctx_tokens_per_slot=256)) as s:\n"
        "    print(s.pid, flush=True); time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(small.model_path)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert has_ended(pid)


@pytest.mark.model
def test_the_template_opens_the_thought_with_nothing_behind_the_tag(thinking: str) -> None:
    prompt = post(f"{thinking}/apply-template", {"messages": EXAMPLE})["prompt"]
    assert f"{OPEN}20 + 3 = 23.\n{CLOSE}23<|im_end|>" in prompt
    assert prompt.endswith(f"<|im_start|>assistant\n{OPEN}")


@pytest.mark.model
def test_without_thinking_the_thought_is_closed_and_no_example_shows_one(thinking: str) -> None:
    body = {"messages": EXAMPLE, "chat_template_kwargs": {"enable_thinking": False}}
    prompt = post(f"{thinking}/apply-template", body)["prompt"]
    assert "20 + 3 = 23" not in prompt
    assert prompt.endswith(f"<|im_start|>assistant\n{OPEN}{CLOSE}")


@pytest.mark.model
def test_the_engine_recognises_the_thought_and_keeps_a_budget(thinking: str) -> None:
    body = {"messages": EXAMPLE, "max_tokens": 40, "temperature": 0, "reasoning_budget_tokens": 3}
    reply = post(f"{thinking}/v1/chat/completions", body)["choices"][0]["message"]
    assert reply.get("reasoning_content")
    assert len(reply["reasoning_content"]) < 30
    assert OPEN not in (reply["content"] or "")
