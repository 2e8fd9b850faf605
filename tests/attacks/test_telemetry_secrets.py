"""A canary in every secret and every text of a client: no log line, span, metric, page, error or file repeats one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.errors import ConfigError
from suffice.settings import parse_settings
from suffice.wiring.keys import key_ring
from suffice_testing import FakeRequest, FakeUpstream, Fault, Reply, ScriptedThought
from tests.gateway_process import GatewayProcess, nested_toml
from tests.otlp_collector import Collector, collecting

SECRETS = {
    "CALLER_KEY": "sk-canary-caller-81",
    "ADMIN_KEY": "sk-canary-metrics-82",
    "FEEDBACK_KEY": "sk-canary-feedback-83",
    "UPSTREAM_KEY": "sk-canary-upstream-84",
    "SUFFICE_SALT": "canary-salt-85",
    "LANGFUSE": "canary-langfuse-86",
    "DATABASE_PASSWORD": "canary-database-87",
    "SMTP_PASSWORD": "canary-smtp-88",
    "WEBHOOK": "https://hooks.example.org/canary-webhook-89",
}
COLLECTOR_SECRET = "canary-collector-90"
TEXTS = ("canary-prompt-92", "canary-thought-93", "canary.mail@example.org", "canary-query-94", "canary-header-95")
PROMPT, THOUGHT, MAIL, QUERY, HEADER = TEXTS
CANARIES = (*SECRETS.values(), COLLECTOR_SECRET, *TEXTS)
QUOTES = json.dumps({"error": {"message": f"no key {SECRETS['UPSTREAM_KEY']} for {PROMPT} of {MAIL}"}}).encode()
LLAMA = {"driver": "llama.cpp", "slots": 4}
STEPS = [(f"{THOUGHT} {n}\n", "4") for n in range(6)]


def says(seen: FakeRequest) -> Any:
    if seen.model == "refused":
        return Reply(faults=(Fault(status=401, status_body=QUOTES),))
    if seen.model == "broken":
        return Reply(faults=(Fault(die_after=2, die_how="rst"),))
    return ScriptedThought(STEPS, "4", reply=Reply())(seen)


def settings_for(upstream: str, collector: str, log_format: str) -> dict[str, Any]:
    stops = {"policy": "stable-answer", "streak": 3}
    enforcing = {"mode": "enforce", "uncertified": True, "audit_share": 0.5, "policy": stops, "probe": {}}
    return {
        "server": {"feedback_keys_env": "FEEDBACK_KEY"},
        "keys": {
            "caller": {"key_env": "CALLER_KEY", "routes": ["stops", "off", "loop"], "requests_per_minute": 100},
            "ops": {"key_env": "ADMIN_KEY", "routes": [], "all_objects": True},
        },
        "upstreams": {
            "up": {
                "url": upstream,
                "driver": "llama.cpp",
                "finish": ["raw"],
                "slots": 4,
                "api_key_env": "UPSTREAM_KEY",
            },
            "gone": {"url": "http://127.0.0.1:9", "api_key_env": "UPSTREAM_KEY", "retries": 0},
        },
        "routes": {
            "stops": {"upstream": "up", "scorer": "number", "match": {"header": "stops"}, **enforcing},
            "off": {"upstream": "up", "mode": "off", "match": {"header": "off"}},
            "gone": {"upstream": "gone", "mode": "off", "match": {"model": "gone"}},
            "loop": {"kind": "rounds", "scorer": "text"},
        },
        "feedback": {"langfuse": {"secret_env": "LANGFUSE", "scores": {}}},
        "alerts": {
            "webhook_url_env": "WEBHOOK",
            "email_to": ["ops@example.org"],
            "email_from": "suffice@example.org",
            "smtp_host": "127.0.0.1",
            "smtp_port": 9,
            "smtp_user_env": "CALLER_KEY",
            "smtp_password_env": "SMTP_PASSWORD",
        },
        "telemetry": {"otlp_endpoint": collector, "log_format": log_format},
    }


class Client:
    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway
        self.answers: list[tuple[str, bytes]] = []

    def ask(self, path: str, key: str, body: bytes | None = None, **headers: str) -> bytes:
        sent = {
            "authorization": f"Bearer {key}",
            "content-type": "application/json",
            "cookie": f"session={HEADER}",
            "user-agent": HEADER,
            "referer": f"http://{HEADER}/",
            "x-conversation-id": PROMPT,
            "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
            "tracestate": f"vendor={HEADER}" if path == "/never" else "vendor=1",
            "x-request-id": f"{HEADER} {MAIL}",  # no id, so it is not taken
        }
        requested = urllib.request.Request(f"{self.gateway.url}{path}?q={QUERY}", body, sent | headers)
        try:
            with urllib.request.urlopen(requested, timeout=60) as reply:
                result: bytes = reply.read()
        except urllib.error.HTTPError as error:
            with error:
                result = error.read()
        except OSError:
            result = b""
        self.answers.append((path, result))
        return result

    def ask_everything(self) -> None:
        caller = SECRETS["CALLER_KEY"]
        for route in ("stops", "off", "none"):
            for model in ("m", "refused", "broken", "gone"):
                for stream in (True, False):
                    text = f"{PROMPT} {model} {stream}"
                    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}
                    sent = json.dumps(body | {"user": MAIL, "metadata": {"note": PROMPT}, "api_key": PROMPT}).encode()
                    self.ask("/v1/chat/completions", caller, sent, **{"x-suffice-route": route})
        step = {"index": 1, "answer": THOUGHT, "tokens": 5}
        self.ask("/v1/decide", caller, json.dumps({"route": "loop", "question": PROMPT, "step": step}).encode())
        rating = {"feedback_id": "f1", "episode_id": "ep_1", "comment": PROMPT, "gold": MAIL, "correct": True}
        self.ask("/v1/feedback", SECRETS["FEEDBACK_KEY"], json.dumps(rating).encode())
        for wrong in (b'{"' + PROMPT.encode(), b"\xff" + MAIL.encode(), b"[" * 500 + PROMPT.encode()):
            self.ask("/v1/chat/completions", caller, wrong)
            self.ask("/v1/chat/completions", f"wrong-{PROMPT}", wrong)
        self.ask("/v1/nothing", caller)


@pytest.fixture(scope="module", params=[pytest.param("text", marks=pytest.mark.slow), "json"])
def ran(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, Collector, bytes]]:
    folder = tmp_path_factory.mktemp("telemetry")
    with FakeUpstream.in_thread(says) as fake, collecting() as collector:
        environment = SECRETS | {
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{COLLECTOR_SECRET}",
            "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        settings = settings_for(fake.url, collector.url, request.param)
        with GatewayProcess.serving(folder, settings, environment=environment) as gateway:
            client = Client(gateway)
            client.ask_everything()
            metrics = client.ask("/metrics", SECRETS["ADMIN_KEY"])
            assert b"suffice_requests_total" in metrics
            collector.wait_for(20, or_more=True)
            collector.status = 503  # the exporter now has something to complain about
            client.ask_everything()
        yield client, collector, metrics


def assert_clean(where: str, data: bytes, *, but: tuple[str, ...] = ()) -> None:
    result = [canary for canary in CANARIES if canary.encode() in data and canary not in but]
    assert not result, f"{where} holds {result}"


def test_no_log_line_holds_a_canary(ran: tuple[Client, Collector, bytes]) -> None:
    report = ran[0].gateway.stderr()
    assert report.count(b"suffice.access") > 50
    assert_clean("the terminal", report)


def test_no_span_holds_a_canary(ran: tuple[Client, Collector, bytes]) -> None:
    _, collector, _ = ran
    assert {span.attributes["suffice.route"] for span in collector.spans} >= {"stops", "off"}
    for body in collector.bodies:
        assert_clean("a batch of spans", body)


def test_no_metric_holds_a_canary(ran: tuple[Client, Collector, bytes]) -> None:
    assert_clean("the metrics", ran[2])


def test_no_answer_holds_a_secret(ran: tuple[Client, Collector, bytes]) -> None:
    texts = (*TEXTS, SECRETS["UPSTREAM_KEY"])  # an upstream's own words, that key included, are relayed to its caller
    for path, answer in ran[0].answers:
        assert_clean(path, answer, but=texts)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("command", ["status", "config show", "config check", "doctor --help"])
def test_no_command_prints_a_canary(ran: tuple[Client, Collector, bytes], command: str) -> None:
    code = "from suffice.cli.main import main; main()"
    config = str(ran[0].gateway.folder / "suffice.toml")
    named = [] if "--help" in command else [config] if command.startswith("config") else ["--config", config]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), *named],
        capture_output=True,
        check=False,
        env={**os.environ, **SECRETS, "PYTHONPATH": paths},
        timeout=120,
    )
    assert b"Traceback" not in done.stderr
    assert_clean(command, done.stdout + done.stderr)


def test_no_file_of_the_gateway_holds_a_secret(ran: tuple[Client, Collector, bytes]) -> None:
    folder = ran[0].gateway.folder
    for file in (one for one in folder.iterdir() if one.is_file() and one.name != "suffice.toml"):
        # The log has what its owner lets it keep: trial answers, labels, comments.
        kept = TEXTS if file.name.startswith("log.db") else ()
        assert_clean(file.name, file.read_bytes(), but=kept)


def test_objects_that_hold_keys_do_not_print_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings = parse_settings(settings_for("http://127.0.0.1:9", "http://127.0.0.1:9", "text"))
    keys = key_ring(settings, SECRETS["SUFFICE_SALT"])
    assert_clean("a ring of keys", repr(keys).encode() + repr(vars(keys) if hasattr(keys, "__dict__") else "").encode())


@pytest.mark.parametrize("name", ["upstreams.up.url", "telemetry.otlp_endpoint"])
def test_a_login_in_an_address_is_refused_and_not_repeated(name: str) -> None:
    raw = settings_for("http://127.0.0.1:9", "http://127.0.0.1:9", "text")
    table, _, key = name.rpartition(".")
    part = raw
    for one in table.split("."):
        part = part[one]
    part[key] = f"http://user:{COLLECTOR_SECRET}@127.0.0.1:9"
    with pytest.raises(ConfigError, match=re.escape(name)) as refused:
        parse_settings(raw)
    assert_clean("the refusal", str(refused.value).encode())


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{SECRETS['DATABASE_PASSWORD']}@127.0.0.1:9/db",
        f"postgresql://user:{SECRETS['DATABASE_PASSWORD']}@[::1/db",
        f"mysql://user:{SECRETS['DATABASE_PASSWORD']}@127.0.0.1/db",
    ],
)
def test_a_password_in_the_address_of_the_database_is_never_repeated(tmp_path: Path, url: str) -> None:
    file = tmp_path / "suffice.toml"
    file.write_text(nested_toml({"upstreams": {"up": {"url": "http://127.0.0.1:9"}}, "store": {"url": url}}), "utf-8")
    for command in (["config", "check", str(file)], ["status", "--config", str(file)]):
        done = CliRunner().invoke(main, command)
        assert isinstance(done.exception, SystemExit | None), "nothing that Python would print with its traceback"
        assert done.exit_code != 0 or command[0] == "config"
        assert_clean(" ".join(command[:2]), done.output_bytes)
