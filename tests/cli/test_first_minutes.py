"""The first minutes: `suffice init` and `suffice serve --upstream` observe, at exactly the tokens of direct calls."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.house.tree import ROOT, blocks

from suffice.cli.main import main
from suffice.server import serve_in_loop
from suffice.settings import Settings, Store, parse_settings
from suffice.store.database.location import log_location
from suffice.store.database.views import read_episodes, upstream_findings
from suffice.store.database.writer import LogWriter
from suffice.wiring.files import load_settings, starter_settings, upstream_table
from suffice_testing import FakeUpstream, ServerBehaviour
from suffice_testing.chain import SumsModel
from suffice_testing.reply import Reply

ENTRY = "from suffice.cli.main import main; main()"
SERVER = ServerBehaviour(slots=4, prefix_cache=True, models=("sums",), owner="llamacpp")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data directory; the current folder has no settings."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SUFFICE_DATA_DIR", raising=False)
    return tmp_path / "xdg" / "suffice"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def post(url: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        answered: bytes = reply.read()
    return answered


# --------------------------------------------------------------------------- init


def test_init_examines_writes_asks_and_says_what_was_seen(data: Path) -> None:
    with FakeUpstream.in_thread(SumsModel(), SERVER) as fake:
        done = run("init", "--upstream", fake.url)
        assert done.exit_code == 0, done.output
        assert "answered        10 of 10" in done.output
        assert "Suffice added 0" in done.output
        assert max(map(len, done.output.replace(str(data), "").splitlines())) <= 100
        settings = load_settings(data / "suffice.toml")
        requested = [call for call in fake.completions if "End with the number alone" in str(call.body)]
    runs = [one.episode for one in read_episodes(log_location(settings.store), "chat")]
    assert len(runs) == len(requested) == 10, "one call for each request"
    assert all(one.outcome.overhead.probe_tokens == 0 and not one.outcome.stopped for one in runs)
    assert all(one.request.mode == "observe" for one in runs)
    known = upstream_findings(log_location(settings.store))["local"]
    assert known.n_slots == settings.upstreams["local"].slots == 4
    assert run("config", "check").output.splitlines()[-1] == f"{data}/suffice.toml: ok"
    assert "requests               10" in run("status", "--all").output, "found from any folder"
    assert "next: suffice serve" in run("status").output, "what nothing can be seen without"


def test_init_writes_no_policy_for_a_model_without_thoughts(data: Path) -> None:
    with FakeUpstream.in_thread(Reply(answer=("408",)), SERVER) as fake:
        done = run("init", "--upstream", fake.url)
        assert done.exit_code == 0, done.output
        assert "returned no thought" in done.output
        assert f"Wrote {data}/suffice.toml, without a policy: a model without thoughts leaves" in done.output
        assert "would stop" not in done.output
    route = load_settings(data / "suffice.toml").routes["chat"]
    assert (route.mode, route.policy) == ("observe", {})
    assert 'kind = "samples"' in (data / "suffice.toml").read_text(), "what would work, as a comment"
    assert run("config", "check").output.splitlines()[-1] == f"{data}/suffice.toml: ok"


def test_init_asks_nothing_where_it_was_told_to_send_nothing(data: Path) -> None:
    with FakeUpstream.in_thread(SumsModel(), SERVER) as fake:
        done = run("init", "--upstream", fake.url, "--requests", "0")
        assert done.exit_code == 0, done.output
        assert not any("End with the number alone" in str(call.body) for call in fake.completions)
    assert (data / "suffice.toml").exists()


def test_init_replaces_no_settings(data: Path) -> None:
    data.mkdir(parents=True)
    (data / "suffice.toml").write_text("# mine\n")
    refused = run("init", "--upstream", "http://127.0.0.1:9")
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"suffice init: {data}/suffice.toml: is there already")
    assert (data / "suffice.toml").read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        ((), 2, "suffice init: --upstream: is missing; need the address of your model server"),
        (("--upstream", "model-server"), 2, "suffice init: --upstream: upstreams.local.url: need http://host"),
        (("--upstream", "http://127.0.0.1:9"), 1, "suffice init: no connection to upstream 'local'"),
        (
            ("--upstream", "http://127.0.0.1:9", "--scorer", "nummber"),
            2,
            "suffice init: routes.chat.scorer: unknown name",
        ),
    ],
)
def test_init_says_what_is_wrong_and_writes_nothing(
    data: Path, options: tuple[str, ...], status: int, sentence: str
) -> None:
    refused = run("init", *options)
    assert (refused.exit_code, refused.stderr[: len(sentence)]) == (status, sentence), refused.output
    assert len(refused.stderr.splitlines()) == 1
    assert not (data / "suffice.toml").exists()


def test_init_names_a_way_on_where_nothing_listens(data: Path) -> None:
    refused = run("init", "--upstream", "http://127.0.0.1:9")
    assert refused.stdout == "Examining http://127.0.0.1:9, which takes about ten seconds\n"
    assert "python -m suffice_testing" in refused.stderr
    assert not (data / "suffice.toml").exists()


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions", "/openai"])
def test_init_says_that_a_path_is_wrong(data: Path, path: str) -> None:
    with FakeUpstream.in_thread(SumsModel(), SERVER) as fake:
        refused = run("init", "--upstream", fake.url + path)
        assert f"{fake.url}{path} answers 404 to GET /v1/models; need the address alone" in refused.stderr
    assert refused.exit_code == 2
    assert not (data / "suffice.toml").exists()


def test_init_refuses_a_gateway_as_its_upstream(data: Path) -> None:
    with FakeUpstream.in_thread(SumsModel(), SERVER) as fake, observing(fake.url) as (gateway, _):
        refused = run("init", "--upstream", gateway)
    assert refused.exit_code == 2, refused.output
    assert f"{gateway} is a gateway of Suffice; need the model server behind it" in refused.stderr
    assert not (data / "suffice.toml").exists()


def test_the_first_settings_are_complete_and_observe() -> None:
    written = tomllib.loads(starter_settings(upstream_table("http://127.0.0.1:8080", "vllm"), api_key_env="KEY"))
    assert set(written) == {"upstreams", "routes", "server", "store"}
    settings = parse_settings(written)
    assert settings.routes["chat"].mode == "observe"
    assert settings.routes["chat"].probe is None, "no call of its own"
    assert (settings.upstreams["local"].driver, settings.upstreams["local"].api_key_env) == ("vllm", "KEY")


# --------------------------------------------------------------------------- serve without a file


@contextmanager
def observing(url: str) -> Iterator[tuple[str, list[str]]]:
    """`suffice serve --upstream`: its address, and what it wrote until it listened."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", ENTRY, "serve", "--upstream", url, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert process.stderr is not None
    lines = list[str]()
    try:
        for line in process.stderr:
            lines.append(line.rstrip())
            if matched := re.search(r"listening on (\S+)/v1", line):
                yield matched[1], lines
                break
        else:
            raise AssertionError(lines)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_a_terminal_gets_the_link_that_logs_in(data: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    ours, theirs = pty.openpty()
    with FakeUpstream.in_thread(SumsModel(), SERVER) as fake:
        command = [sys.executable, "-c", ENTRY, "serve", "--upstream", fake.url, "--port", "0"]
        process = subprocess.Popen(command, stderr=theirs, env={**os.environ, "PYTHONPATH": paths})
        try:
            displayed = b""
            while b"is listening on" not in displayed:
                assert process.poll() is None, displayed
                if select.select([ours], [], [], 0.2)[0]:
                    displayed += os.read(ours, 65_536)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            os.close(ours)
            os.close(theirs)
    assert re.search(rb"/console/login#secret=sfc_[0-9a-f]{12}_[0-9a-f]{64}", displayed)


def test_serve_needs_no_file_and_writes_no_secret_to_a_log(data: Path) -> None:
    body = {"model": "sums", "messages": [{"role": "user", "content": "What is 17 * 24?"}]}
    with FakeUpstream.in_thread(SumsModel(), SERVER) as fake:
        server = fake.url
        with observing(server) as (url, lines):
            assert not fake.completions, "asking which model there is costs no token"
            post(f"{url}/v1/chat/completions", body)
            assert not [line for line in lines if "sfc_" in line], "standard error is no terminal"
            assert any("suffice admin reset-secret" in line for line in lines)
            with urllib.request.urlopen(f"{url}/console/login", timeout=30) as page:
                assert b'name="secret"' in page.read()
        assert len(fake.completions) == 1
    assert f"{server}: model sums, driver llama.cpp; observed only, at no further call or token" in lines
    assert not list(Path.cwd().iterdir()), "the log is in the data directory"
    assert (data / "suffice.db").exists()
    assert not (data / "suffice.toml").exists()


def test_serve_waits_for_no_server_that_is_down(data: Path) -> None:
    with observing("http://127.0.0.1:9") as (_, lines):
        assert lines[0].startswith("http://127.0.0.1:9: does not answer yet")
    assert (data / "suffice.db").exists()


def test_serve_takes_settings_from_one_place(data: Path) -> None:
    named = run("serve", "--upstream", "http://127.0.0.1:9", "--config", "mine.toml")
    assert named.exit_code == 2
    assert "leave out it or --config" in named.stderr
    data.mkdir(parents=True)
    (data / "suffice.toml").write_text("")
    result = run("serve", "--upstream", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert f"{data}/suffice.toml has the settings" in result.stderr


def test_a_newcomer_without_settings_is_shown_two_commands_that_exist(data: Path) -> None:
    refused = run("serve")
    assert refused.exit_code == 2
    assert not data.exists()
    displayed = [line.split("#")[0].split() for line in refused.stderr.splitlines() if line.startswith("    suffice ")]
    assert [words[1] for words in displayed] == ["init", "serve"]
    for words in displayed:
        command = main.get_command(main.make_context("suffice", ["x"], resilient_parsing=True), words[1])
        assert command is not None
        command.make_context(words[1], words[2:])


# --------------------------------------------------------------------------- what observing costs

REQUESTED = ["What is 17 * 24?", "Hello there", "What is 3 + 4?", "What is 17 * 24?"]


def readme_example() -> dict[str, Any]:
    displayed = next(block for block in blocks(ROOT / "README.md") if block.language == "toml")
    return tomllib.loads(displayed.text)


ROUTES: dict[str, dict[str, Any]] = {
    "the first settings": tomllib.loads(starter_settings(upstream_table("http://h", "llama.cpp"))),
    "without a driver": tomllib.loads(starter_settings(upstream_table("http://h", None))),
    "the README's example": readme_example(),
    "nothing but an upstream": {"upstreams": {"local": {"url": "http://h"}}},
    "a route without a policy": {"routes": {"chat": {"upstream": "local", "scorer": "number"}}},
    "one sample": {"routes": {"chat": {"upstream": "local", "kind": "samples"}}},
    "off": {"routes": {"chat": {"upstream": "local", "mode": "off"}}},
}


def settings_of(route: str, url: str, database: Path) -> Settings:
    raw = {"upstreams": {"local": {}}, **ROUTES[route], "store": {"url": f"sqlite:///{database}"}}
    first = next(iter(raw["upstreams"].values()))
    return parse_settings({**raw, "upstreams": {next(iter(raw["upstreams"])): {**first, "url": url}}})


def ask_all(url: str, *, stream: bool) -> None:
    for requested in REQUESTED:
        body = {"model": "sums", "messages": [{"role": "user", "content": requested}], "stream": stream}
        post(f"{url}/v1/chat/completions", body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", ROUTES)
async def test_observing_costs_exactly_the_tokens_of_direct_calls(route: str, stream: bool, tmp_path: Path) -> None:
    async def spent(database: Path | None) -> tuple[int, int, int]:
        async with FakeUpstream(SumsModel(), SERVER) as fake:
            if database is None:
                await asyncio.to_thread(ask_all, fake.url, stream=stream)
            else:
                async with serve_in_loop(settings_of(route, fake.url, database)) as url:
                    await asyncio.to_thread(ask_all, url, stream=stream)
            return len(fake.completions), fake.total_prompt_tokens, fake.total_completion_tokens

    assert await spent(tmp_path / "log.db") == await spent(None)


def test_status_finds_the_log_of_a_gateway_that_serves_without_a_file(data: Path) -> None:
    refused = run("status")
    assert (refused.exit_code, "suffice init" in refused.stderr) == (2, True)
    data.mkdir(parents=True)
    LogWriter(Store(url=f"sqlite:///{data / 'suffice.db'}"), now=lambda: 0.0).close()
    displayed = run("status")
    assert (displayed.exit_code, displayed.stderr) == (0, ""), displayed.output
