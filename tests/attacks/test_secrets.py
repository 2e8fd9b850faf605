"""Attacks on what must stay hidden: canaries in keys, prompts, answers and addresses, looked for wherever we write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice_testing import FakeRequest, FakeUpstream, Fault, Reply
from tests.gateway_process import GatewayProcess

KEYS = {
    "client": "sk-canary-client-61",
    "feedback": "sk-canary-feedback-62",
    "upstream": "sk-canary-upstream-63",
    "hook": "https://hooks.example.org/canary-hook-64",
}
WORDS = ("canary-prompt-65", "canary-thought-66", "canary.mail@example.org")
SALT = "canary-salt-67"
ENVIRONMENT = {
    "A_KEYS": KEYS["client"],
    "A_FEEDBACK": KEYS["feedback"],
    "A_UPSTREAM": KEYS["upstream"],
    "A_HOOK": KEYS["hook"],
    "SUFFICE_SALT": SALT,
}
PROMPT, THOUGHT, MAIL = WORDS
QUOTES = json.dumps({"error": {"message": f"bad key {KEYS['upstream']} for {PROMPT}"}}).encode()


def _says(seen: FakeRequest) -> Reply:
    if seen.model == "refused":
        return Reply(faults=(Fault(status=401, status_body=QUOTES),))
    if seen.model == "broken":
        return Reply(
            faults=(Fault(status=200, status_body=b"<h1>" + QUOTES, status_headers={"content-type": "text/html"}),)
        )
    return Reply(reasoning=(f"{THOUGHT}\n",) * 20, answer=("4",))


@dataclass
class Running:
    """A gateway that has seen every canary."""

    gateway: GatewayProcess
    admin: str

    def get(self, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> bytes:
        requested = urllib.request.Request(self.gateway.url + path, body, dict(headers or {}))
        try:
            with urllib.request.urlopen(requested, timeout=60) as reply:
                result: bytes = reply.read()
        except urllib.error.HTTPError as error:
            with error:
                result = error.read()
        return result

    def ask(self, key: str = KEYS["client"], **fields: Any) -> bytes:
        body = {"model": "m", "user": MAIL, "messages": [{"role": "user", "content": f"{PROMPT} of {MAIL}"}]} | fields
        headers = {
            "authorization": f"Bearer {key}",
            "content-type": "application/json",
            "x-conversation-id": PROMPT,
            "user-agent": PROMPT,
            "idempotency-key": f"{PROMPT}-{len(json.dumps(fields))}",
        }
        return self.get("/v1/chat/completions", headers, json.dumps(body).encode())

    @property
    def config(self) -> str:
        return str(self.gateway.folder / "suffice.toml")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("secrets")
    with FakeUpstream.in_thread(_says) as fake:
        settings = {
            "server": {"api_keys_env": "A_KEYS", "feedback_keys_env": "A_FEEDBACK"},
            "upstreams": {"up": {"url": fake.url, "driver": "vllm", "api_key_env": "A_UPSTREAM"}},
            "routes": {"r": {"upstream": "up", "scorer": "number"}},
            "audit": {"file": str(folder / "heads.jsonl")},
        }
        with GatewayProcess.serving(folder, settings, environment=ENVIRONMENT, log_level="debug") as gateway:
            here = Running(gateway, gateway.admin_secret)
            for fields in (
                {},
                {"stream": True},
                {"n": 2},
                {"model": "refused"},
                {"model": "broken"},
                {"max_tokens": 3},
            ):
                here.ask(**fields)
            yield here


def _assert_clean(where: str, data: bytes, *, but: tuple[str, ...] = ()) -> None:
    for canary in (*KEYS.values(), *WORDS, SALT):
        if canary not in but:
            assert canary.encode() not in data, f"{where} holds {canary}"


@pytest.mark.parametrize(
    "path", ["/metrics", "/healthz", "/readyz", "/v1/models", "/v1/nothing", "/", "/console/login"]
)
def test_no_open_page_holds_a_canary(running: Running, path: str) -> None:
    for key in (KEYS["client"], "wrong"):
        _assert_clean(path, running.get(path, {"authorization": f"Bearer {key}"}))


API = [
    "/api/overview",
    "/api/routes",
    "/api/route?route=r",
    "/api/episodes",
    "/api/policies",
    "/api/experiments",
    "/api/alerts",
    "/api/incidents",
    "/api/changes",
    "/api/review",
    "/api/settings",
    "/api/openapi.json",
]


@pytest.mark.parametrize("path", API)
def test_no_page_of_the_console_holds_a_canary_or_a_secret(running: Running, path: str) -> None:
    report = running.get(path, {"authorization": f"Bearer {running.admin}"})
    _assert_clean(path, report)
    assert running.admin.encode() not in report
    assert b"scrypt" not in report


BAD: dict[str, bytes] = {
    "half an object": b'{"model":"' + PROMPT.encode(),
    "no UTF-8": b"\xff" + PROMPT.encode(),
    "a name twice": b'{"model":"%s","model":1}' % PROMPT.encode(),
    "a wrong type": b'{"model":{"%s":1}}' % PROMPT.encode(),
    "a list": b'["%s"]' % PROMPT.encode(),
    "an unknown name": b'{"model":"m","unknown":"%s"}' % PROMPT.encode(),
    "a role that there is not": b'{"model":"m","messages":[{"role":"%s","content":"x"}]}' % PROMPT.encode(),
    "deep": b'{"model":"m","messages":' + b"[" * 500 + PROMPT.encode(),
    "a number": b'{"model":"m","max_tokens":"%s"}' % PROMPT.encode(),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback", "/v1/decide"])
def test_no_error_quotes_what_was_sent(running: Running, path: str, bad: str) -> None:
    headers = {"authorization": f"Bearer {KEYS['client']}", "content-type": "application/json"}
    report = running.get(path, headers, BAD[bad])
    if b'"model":"m"' not in BAD[bad] or path != "/v1/chat/completions":  # what is complete goes to the upstream
        assert b"error" in report
    _assert_clean(path, report, but=(THOUGHT,))


@pytest.mark.parametrize("key", ["wrong", KEYS["upstream"], KEYS["client"] + "x", KEYS["client"].upper(), "", " "])
def test_no_refusal_quotes_a_key(running: Running, key: str) -> None:
    report = running.ask(key=key)
    assert b"error" in report
    assert not key.strip() or key.encode() not in report or key == "wrong"
    _assert_clean("a refusal", report)


def test_process_arguments_hold_no_canary(running: Running) -> None:
    """Everybody on the machine may read them."""
    pids = [running.gateway.process.pid]
    for name in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = name.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[1]) in pids:
            pids.append(int(name.parent.name))
    for pid in pids:
        _assert_clean(f"process {pid}", Path(f"/proc/{pid}/cmdline").read_bytes())


COMMANDS = [
    ["status"],
    ["status", "--json"],
    ["audit", "show", "-n", "1000"],
    ["audit", "show", "--json", "-n", "1000"],
    ["audit", "verify"],
    ["audit", "export"],
    ["config", "check"],
    ["config", "show"],
    ["policy", "list"],
    ["alerts", "list"],
    ["admin", "list"],
    ["policy", "show", "r"],
    ["audit", "bundle", "r"],
    ["experiment", "list"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_prints_a_canary(running: Running, words: list[str]) -> None:
    done = CliRunner(env=ENVIRONMENT).invoke(main, [*words, "--config", running.config])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    _assert_clean(" ".join(words), done.output.encode())


@pytest.mark.parametrize(
    "words", [["--help"], ["serve", "--help"], ["worker", "--help"], ["--version"], ["nothing"]], ids=" ".join
)
def test_no_help_shows_a_value_of_the_environment(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from suffice.cli.main import main; main()", *words],
        capture_output=True,
        check=False,
        env={**os.environ, **ENVIRONMENT, "SUFFICE_CONFIG": KEYS["client"], "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    _assert_clean(" ".join(words), done.stdout + done.stderr)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("name", ["A_KEYS", "A_UPSTREAM", "A_FEEDBACK"])
def test_a_start_without_one_of_its_keys_names_the_variable_and_no_value(
    tmp_path: Path, running: Running, name: str
) -> None:
    file = tmp_path / "suffice.toml"
    file.write_text(Path(running.config).read_text().replace(str(running.gateway.folder), str(tmp_path)))
    environment = {key: value for key, value in ENVIRONMENT.items() if key != name}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from suffice.cli.main import main; main()",
            "serve",
            "--config",
            str(file),
            "--port",
            "0",
        ],
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode != 0
    assert name.encode() in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr
    _assert_clean("the error", done.stdout + done.stderr)


def test_the_terminal_and_every_file_beside_the_log_hold_no_canary(running: Running) -> None:
    """Last in this file: everything above has been asked by now, at the most talkative level of the log."""
    _assert_clean("the terminal", running.gateway.stderr())
    assert b"sfc_" not in running.gateway.stderr(), "a log shows no secret"
    for path in running.gateway.folder.rglob("*"):
        if path.is_file() and path.name != "suffice.toml":
            data = path.read_bytes()
            _assert_clean(path.name, data)
            assert running.admin.encode() not in data
