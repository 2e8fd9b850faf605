"""From another folder a command acts on the deployment of its settings file, or says where it looked.

The table in elsewhere.md is what is tested: every row is called from another folder, in its order.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from tests.cli.test_shell import leaves, value
from tests.gateway_process import GatewayProcess

from suffice.cli.main import main
from suffice.settings import Store
from suffice.store.database.writer import LogWriter
from suffice.wiring.files import load_settings
from suffice.wiring.keys import kill_file
from suffice_testing import FakeUpstream

TABLE = Path(__file__).with_name("elsewhere.md")
ROW = re.compile(r"^\| `(.+?)` \| `(.+?)`, (\d) \| `(.+?)`, (\d) \|$", re.MULTILINE)
ROWS = ROW.findall(TABLE.read_text(encoding="utf-8"))
SETTINGS = {
    "routes": {
        "r": {"upstream": "up", "kind": "samples", "samples": 8, "scorer": "number"},
        "own": {
            "upstream": "up",
            "kind": "samples",
            "samples": 8,
            "scorer": "number",
            "match": {"header": "own"},
            "mode": "enforce",
            "policy": {"policy": "beta", "threshold": 0.95},
            "uncertified": True,
        },
        "tried": {
            "upstream": "up",
            "kind": "samples",
            "samples": 8,
            "scorer": "number",
            "match": {"header": "tried"},
            "mode": "enforce",
            "policy": {"policy": "stable-answer", "streak": 4},
            "uncertified": True,
        },
    },
    "experiments": {
        "brisk": {
            "routes": ["tried"],
            "arms": {
                "full": {"full": True},
                "brisk": {"policy": {"policy": "stable-answer", "streak": 2}},
            },
        }
    },
    "control": {"enabled": False},
    "store": {"url": "sqlite:///log.db"},
}

# Commands that make a deployment, or know none.
OTHERS = {
    "init",
    "completion",
    "demo",
    "config check",
    "config show",
    "doctor",
    "serve",
    "estimate",
    "record",
    "replay",
    "tune",
    "audit bundle",
    "alerts test",
    "store migrate",  # makes a log
    "store copy",  # takes one along, from the place that it is told
}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    (tmp_path / "home").mkdir()
    with FakeUpstream.in_thread() as fake:
        yield tmp_path / "home", fake.url


def say(home: Path, words: str) -> Result:
    written = [*shlex.split(words), "--config", str(home / "suffice.toml")]
    asks = (
        "kill",
        "pause",
        "reload",
        "resume",
        "override set",
        "override end",
        "incident",
        "experiment",
        "policy",
        "review ask",
    )
    if words.startswith((*asks, "erase")):
        written += ["--reason", "because"]
    return CliRunner().invoke(main, written)


def walk(home: Path, elsewhere: Path, column: int) -> None:
    label = '{"episode_id": "ep_1", "correct": true, "feedback_id": "f1", "source": "reviewer"}\n'
    (elsewhere / "labels.jsonl").write_text(label, encoding="utf-8")
    for row in ROWS:
        done = say(home, row[0])
        displayed = " ".join(f"{done.stdout} {done.stderr}".split())
        assert (row[column] in displayed, done.exit_code) == (True, int(row[column + 1])), f"{row[0]}: {displayed}"
    made = {path.name for path in elsewhere.iterdir()}
    assert made == {"labels.jsonl", "out.jsonl", "audit.jsonl"}, "only what was named with --out, or as a file"


def test_the_table_names_every_command_that_changes_something() -> None:
    assert len(ROWS) > 20
    written = {" ".join(row[0].split()[:2]) for row in ROWS} | {row[0].split()[0] for row in ROWS}
    for name in (
        "kill",
        "unkill",
        "pause",
        "resume",
        "override set",
        "override end",
        "incident open",
        "erase",
        "incident decide",
        "experiment start",
        "experiment stop",
        "admin add",
        "policy rollback",
    ):
        assert name in written, name


@pytest.mark.slow
def test_with_a_running_gateway(home: tuple[Path, str], elsewhere: Path) -> None:
    folder, url = home
    with GatewayProcess.serving(folder, {"upstreams": {"up": {"url": url}}, **SETTINGS}) as gateway:
        walk(folder, elsewhere, 1)
        assert f"confirmed by gateway PID {gateway.process.pid} after" in say(folder, "kill").stdout
        assert say(folder, "pause r").exit_code == 0
        first, second = say(folder, "status").stdout.splitlines()[:2]
        assert first.startswith("KILLED: nothing is stopped on any route: because (")
        assert second.startswith("PAUSED: route r runs in full until somebody resumes it: because (")
    assert not list(folder.glob("*.gateway")), "a gateway that ended leaves no file of that kind"


def test_without_a_gateway(home: tuple[Path, str], elsewhere: Path) -> None:
    folder, url = home
    (folder / "suffice.toml").write_text(written(url), encoding="utf-8")
    LogWriter(Store(url=f"sqlite:///{folder}/log.db"), now=lambda: 1.0).close()
    walk(folder, elsewhere, 3)


def written(url: str = "http://127.0.0.1:9") -> str:
    from tests.gateway_process import nested_toml

    return nested_toml({"upstreams": {"up": {"url": url}}, **SETTINGS})


@pytest.mark.parametrize(("name", "command"), [one for one in leaves() if one[0] not in OTHERS])
def test_without_a_log_nothing_is_made_and_the_place_is_named(
    name: str, command: click.Command, tmp_path: Path, elsewhere: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "suffice.toml").write_text(written(), encoding="utf-8")
    words = [*name.split(), "--config", str(home / "suffice.toml")]
    for parameter in command.params:
        if parameter.required:
            words += [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
            words.append("own" if parameter.name == "route" else value(parameter))
    words += {
        "erase": ["--older-than", "1d"],
        "review submit": ["--reason", "x"],
        "reload": ["--reason", "x"],
        "worker": ["--once", "certify"],  # the others wait for the log
    }.get(name, [])
    if name == "export feedback":
        words[words.index("missing.jsonl")] = "a.jsonl"
    if name == "feedback import":
        (elsewhere / "a.jsonl").write_text("")
        words = [word.replace("missing.jsonl", "a.jsonl") for word in words]
    before = sorted(elsewhere.iterdir())
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert f"store {home / 'log.db'}: does not exist; store.url in {home / 'suffice.toml'}" in done.stderr, done.stderr
    assert [one.name for one in home.iterdir()] == ["suffice.toml"], "no file and no folder"
    assert sorted(elsewhere.iterdir()) == before
    assert not kill_file(load_settings(home / "suffice.toml")).exists()
