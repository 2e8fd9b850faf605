"""The harness of `make clients` sees what it must: its rules are tested here, its clients are run by it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from suffice.settings import parse_settings
from suffice.wiring.routes import build_route
from suffice_testing import FakeUpstream
from tests.clients.peers import environments
from tests.clients.peers.__main__ import Row, exit_code, show_pairs, show_sittings
from tests.clients.peers.compare import Rule, differences, unlike
from tests.clients.peers.exam import EM_FULL, EM_STOPPED, QUESTIONS, Sitting
from tests.clients.peers.matrix import Pair
from tests.clients.peers.roster import CLIENTS, HERE
from tests.clients.peers.stage import MODES, SAYS, SCENES, model_name, settings
from tests.gateway.served import post

USAGE = {"prompt": 9, "completion": 80, "total": 89, "reasoning": 74}
LESS = {"prompt": 9, "completion": 34, "total": 43, "reasoning": 28}
ERROR = {"type": "APIError", "status": 400, "message": "no"}
SEEN: dict[str, Any] = {
    "text": "408",
    "reasoning": "17 * 24 is 408",
    "finish": "stop",
    "usage": USAGE,
    "tools": [],
    "parts": ["reasoning", "text"],
    "error": None,
}
CALL = {"name": "keep", "arguments": {"value": 408}}

# what the client saw through the gateway, instead of SEEN: must it be found? under which rule, stopped or not
CASES: list[tuple[str, dict[str, Any], dict[str, Any], Rule, bool, bool]] = [
    ("nothing", {}, {}, "equal", False, False),
    ("the text", {}, {"text": "409"}, "equal", False, True),
    ("a broken character", {"text": "北"}, {"text": "\ufffd"}, "equal", False, True),
    ("the thought", {}, {"reasoning": "17 * 24"}, "equal", False, True),
    ("no thought", {}, {"reasoning": None}, "equal", False, True),
    ("the finish reason", {}, {"finish": "length"}, "equal", False, True),
    ("no finish reason", {}, {"finish": None}, "equal", False, True),
    ("the usage", {}, {"usage": LESS}, "equal", False, True),
    ("no usage", {}, {"usage": None}, "equal", False, True),
    ("a tool call", {}, {"tools": [CALL]}, "equal", False, True),
    ("a tool's arguments", {"tools": [CALL]}, {"tools": [CALL | {"arguments": {}}]}, "equal", False, True),
    ("the order of its parts", {}, {"parts": ["text", "reasoning"]}, "equal", False, True),
    ("an error", {}, {"error": ERROR}, "equal", False, True),
    ("no error", {"error": ERROR}, {"error": None}, "equal", False, True),
    ("the error's type", {"error": ERROR}, {"error": ERROR | {"type": "E"}}, "equal", False, True),
    ("the error's status", {"error": ERROR}, {"error": ERROR | {"status": 500}}, "equal", False, True),
    ("the error's words", {"error": ERROR}, {"error": ERROR | {"message": "yes"}}, "equal", False, True),
    ("stopped: less of both", {}, {"reasoning": "17 * 24", "usage": LESS}, "equal", True, False),
    ("stopped: no thought shown", {"reasoning": None}, {"reasoning": None, "usage": LESS}, "equal", True, False),
    ("stopped: no usage shown", {"usage": None}, {"reasoning": "17", "usage": None}, "equal", True, False),
    ("stopped: the text", {}, {"text": "4", "reasoning": "17 * 24", "usage": LESS}, "equal", True, True),
    ("stopped: the finish", {}, {"finish": "x", "reasoning": "17", "usage": LESS}, "equal", True, True),
    ("stopped: another thought", {}, {"reasoning": "18", "usage": LESS}, "equal", True, True),
    ("stopped: the whole thought", {}, {"usage": LESS}, "equal", True, True),
    ("stopped: the whole usage", {}, {"reasoning": "17"}, "equal", True, True),
    ("stopped: the prompt", {}, {"reasoning": "17", "usage": LESS | {"prompt": 8}}, "equal", True, True),
    ("stopped: no usage", {}, {"reasoning": "17", "usage": None}, "equal", True, True),
    ("stopped: no count", {}, {"reasoning": "17", "usage": LESS | {"reasoning": None}}, "equal", True, True),
    ("stopped: a part", {}, {"parts": ["reasoning"], "reasoning": "17", "usage": LESS}, "equal", True, True),
    ("stopped: an error", {}, {"error": ERROR, "reasoning": "17", "usage": LESS}, "equal", True, True),
    ("heard: told where it was silent", {}, {"error": ERROR}, "heard", False, False),
    ("heard: told otherwise", {"error": ERROR}, {"error": ERROR | {"status": 502}}, "heard", False, False),
    ("heard: silenced", {"error": ERROR}, {"error": None}, "heard", False, True),
    ("heard: text lost", {"error": ERROR}, {"error": ERROR, "text": "40"}, "heard", False, True),
    ("heard: text lost and told", {}, {"error": ERROR, "text": "40"}, "heard", False, True),
    ("heard: text made up", {}, {"text": "4080"}, "heard", False, True),
]


@pytest.mark.parametrize(
    ("direct", "through", "rule", "stopped", "differs"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_comparison_finds_what_differs(
    direct: dict[str, Any], through: dict[str, Any], rule: Rule, stopped: bool, differs: bool
) -> None:
    wrong = differences(SEEN | direct, SEEN | direct | through, rule=rule, stopped=stopped)
    assert bool(wrong) is differs, wrong


def test_a_result_that_lacks_a_field_is_no_result() -> None:
    assert differences({"text": ""}, {"text": ""}, rule="equal", stopped=False)


def test_two_equal_failures_of_a_program_are_no_success() -> None:
    broken = SEEN | {"text": "", "error": {"type": "AttributeError", "status": None, "message": "no such thing"}}
    assert differences(broken, broken, rule="equal", stopped=False) == []
    assert unlike(broken, expected="answer", says="408")
    assert unlike(broken, expected="status", says="429")
    assert unlike(SEEN, expected="tool", says='{"value": 408}')
    assert unlike(SEEN | {"text": "4"}, expected="answer", says="408")
    assert not unlike(SEEN, expected="answer", says="408")
    assert not unlike(SEEN | {"error": ERROR}, expected="status", says="400")
    assert not unlike(SEEN | {"tools": [CALL]}, expected="tool", says='{"value": 408}')


def test_one_route_of_the_stage_acts_and_two_watch() -> None:
    meant = settings("http://127.0.0.1:1", Path("log.db"))
    routes = {name: build_route(name, route) for name, route in parse_settings(meant).routes.items()}
    assert [name for name, route in routes.items() if route.acts] == ["enforce"]


async def test_every_scene_has_its_reply(tmp_path: Path) -> None:
    from aiohttp import ClientSession

    from tests.clients.peers.stage import says

    async with FakeUpstream(says) as fake, ClientSession() as session:
        for scene in SCENES:
            kind = scene.name.partition("-")[0]
            assert kind in SAYS
            if scene.rule == "heard" or scene.thinks:
                continue  # slow, or broken on purpose
            body = {"model": model_name("off", scene.name), "messages": [], "stream": scene.stream}
            answer = await post(session, fake.url + "/v1/chat/completions", body, {})
            assert answer.status == (int(kind) if kind.isdigit() else 200), scene.name


def test_every_client_is_pinned_and_asked_something_in_every_mode() -> None:
    assert len({client.name for client in CLIENTS}) == len(CLIENTS)
    assert len(MODES) == 3
    for client in CLIENTS:
        assert client.own_scenes()
        assert {scene.name for scene in client.own_scenes()} == set(client.scenes)
        if client.runtime == "node":
            assert (HERE / "node" / client.program).is_file()
            continue
        assert (HERE / "programs" / f"{client.program}.py").is_file()
        pinned = (HERE / "requirements" / f"{client.environment}.txt").read_text(encoding="utf-8")
        assert f"\n{client.distribution}==" in f"\n{pinned}".replace("[openai]==", "==").replace("[api]==", "==")
        assert "--hash=sha256:" in pinned


def test_what_is_not_installed_is_named_and_is_no_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(environments.Missing, match="node not found"):
        environments.ready("node")
    missing = Row(client="ai-sdk", not_run="node not found")
    assert missing.result == "not run: node not found"
    assert exit_code([Row(client="llm"), missing], allow_missing=False) == 2
    assert exit_code([Row(client="llm"), missing], allow_missing=True) == 0


def test_a_difference_is_a_failure_and_stands_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["text: 1, not 2"]
    pair = Pair(client="llm", mode="observe", scene="body", direct={}, through={}, stopped=False, wrong=wrong)
    sitting = Sitting(mode="enforce", em=0.5, em_status=0.4, n_stopped=0, wrong=["0 runs were stopped"])
    for row in (Row(client="llm", pairs=[pair]), Row(client="llm", sittings=[sitting]), Row(client="llm", broke="no")):
        assert exit_code([row], allow_missing=True) == 1
        assert row.result in ("1 DIFFER", "BROKE")
    show_pairs(Row(client="llm", pairs=[pair]))
    show_sittings(Row(client="llm", sittings=[sitting]))
    printed = capsys.readouterr().out
    assert "observe body: text: 1, not 2" in printed
    assert "50.0 = 40.0" in printed
    assert "enforce: 0 runs were stopped" in printed


def test_the_exam_is_one_that_an_early_stop_can_fail() -> None:
    assert EM_STOPPED < EM_FULL < 1
    assert len({q.text for q in QUESTIONS}) == len(QUESTIONS)


def test_a_client_finds_nothing_of_the_machine_around_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-owner")
    environment = environments.clean_environment(tmp_path)
    assert "HTTPS_PROXY" not in environment
    assert "sk-owner" not in environment.values()
    assert environment["HOME"] == str(tmp_path)
