"""`suffice experiment` as a person and a program use it: begun, looked at, changed and ended."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.control.made import run

from suffice.cli.main import main
from suffice.rollout.experiment import draw_arms, units_of
from suffice.settings import Store
from suffice.store.database.writer import LogWriter
from suffice.store.routes.experiments import read_experiments
from suffice.store.rows.events import Event, FeedbackEvent
from suffice.types import Feedback, Usage

CONFIG = """
[upstreams.box]
url = "http://127.0.0.1:9"

[store]
url = "sqlite:///{folder}/a.db"

[routes.r]
upstream = "box"
kind = "samples"
samples = 8
scorer = "number"
mode = "enforce"
policy = {{ policy = "stable-answer", streak = 4 }}
uncertified = true

[experiments.brisk]
routes = ["r"]
margins = {{ em = 0.2 }}
warmup_units = 20
{more}

[experiments.brisk.arms.full]
full = true

[experiments.brisk.arms.brisk]
weight = {weight}
policy = {{ policy = "stable-answer", streak = 2 }}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    LogWriter(Store(url=f"sqlite:///{tmp_path}/a.db"), now=lambda: 1.0).close()
    return written(tmp_path)


def written(folder: Path, *, weight: float = 1.0, more: str = "") -> Path:
    file = folder / "suffice.toml"
    file.write_text(CONFIG.format(folder=folder, weight=weight, more=more), encoding="utf-8")
    return file


def called(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["experiment", *map(str, arguments)])


def begun(config: Path, reason: str = "to see") -> Result:
    return called("start", "brisk", "--config", config, "--reason", reason, "--author", "Ada")


def traffic(config: Path, n: int) -> None:
    """Runs of both arms, as a gateway would have served them."""
    rng, path = random.Random(3), config.parent / "a.db"
    one = next(one.experiment for one in read_experiments(path) if one.runs)
    events = list[Event]()
    for number in range(n):
        arms = draw_arms([one], route="r", units=units_of("", request=f"u{number}"), salt="s")
        changes: dict[str, Any] = {"audit": number % 4 == 0, "unit": f"u{number}", "certified": False}
        request, outcome = run(number, rng, **changes)
        request = replace(request, arms=arms)
        if arms[0].arm == "brisk" and not request.audit:
            outcome = replace(
                outcome,
                usage=Usage(prompt_tokens=5, completion_tokens=100),
                end_reason="stopped",
                stopped=True,
                stop_step=2,
                steps=outcome.steps[:2],
            )
        rating = Feedback(feedback_id=f"f{number}", episode_id=request.episode_id, rating=rng.choice([3, 4, 5]))
        ended = replace(outcome, duration_s=rng.uniform(1, 3))
        events += [request, ended, FeedbackEvent(rating)]
    log = LogWriter(Store(url=f"sqlite:///{path}", flush_ms=0), now=lambda: 0.0)
    for event in events:
        assert log.append(event)
    log.close()


def test_a_life_of_an_experiment(config: Path) -> None:
    assert "brisk: never started" in called("list", "--config", config).stdout
    started = begun(config)
    assert started.exit_code == 0, started.output
    first, _, power = started.stdout.partition(". ")
    assert (
        first == "Experiment brisk is started, run 1: full 50.0%, brisk 50.0%; running gateways follow within a second"
    )
    assert "what it finds in" in power
    traffic(config, 800)
    displayed = called("show", "brisk", "--config", config)
    assert displayed.exit_code == 0, displayed.output
    print(displayed.stdout)
    assert "by Ada: to see" in displayed.stdout
    assert "brisk against full: BETTER" in displayed.stdout
    report = " ".join(displayed.stdout.split())
    assert "'brisk' against 'full' is better, and nothing with a margin loses more than you allow: a request" in report
    for metric in ("tokens", "em", "satisfaction", "latency"):
        assert f"\n  {metric}" in displayed.stdout
    assert "All intervals hold together" in displayed.stdout
    stopped = called("stop", "brisk", "--config", config, "--reason", "seen", "--author", "Bob")
    assert stopped.exit_code == 0, stopped.output
    assert "'brisk' against 'full' is better" in stopped.stdout
    after = called("show", "brisk", "--config", config)
    assert "stopped" in after.stdout
    assert "by Bob: seen" in after.stdout
    assert "brisk: stopped" in called("list", "--config", config).stdout


def test_a_program_reads_json(config: Path) -> None:
    rows = json.loads(called("list", "--config", config, "--json").stdout)["experiments"]
    assert rows[0]["state"] == "never started"
    start = called("start", "brisk", "--config", config, "--reason", "r", "--json")
    assert json.loads(start.stdout)["experiment"]["arms"][0]["full"] is True
    traffic(config, 60)
    result = json.loads(called("show", "brisk", "--config", config, "--json").stdout)
    assert result["state"] == "running"
    assert result["result"]["n_units"] == 60
    assert result["result"]["arms"][0]["comparisons"][0]["metric"] == "tokens"
    assert len(result["reading"]["brisk"]) in (2, 3)
    ended = json.loads(called("stop", "brisk", "--config", config, "--reason", "r", "--json").stdout)
    assert ended["run"] == 1
    assert ended["summary"]


def test_weights_may_change_while_it_runs_and_arms_may_not(config: Path) -> None:
    begun(config)
    assert begun(config).exit_code == 1
    written(config.parent, weight=3.0)
    changed = begun(config, "more of it")
    assert changed.stdout.startswith("Experiment brisk has new weights, run 1: full 25.0%, brisk 75.0%")
    written(config.parent, weight=3.0, more='unit = "user"')
    refused = begun(config)
    assert refused.exit_code == 1
    assert "stop it before anything but weights and share changes" in refused.stderr
    assert "brisk: running" in called("list", "--config", config).stdout


def test_what_cannot_be_is_said(config: Path) -> None:
    assert called("start", "bold", "--config", config, "--reason", "r").exit_code == 2
    unknown = called("show", "brisk", "--config", config)
    assert unknown.exit_code == 2
    assert "no run of experiment 'brisk'" in unknown.stderr
    assert "none was ever started" in unknown.stderr
    idle = called("stop", "brisk", "--config", config, "--reason", "r")
    assert (idle.exit_code, idle.stderr) == (1, "suffice experiment stop: experiment brisk is not running\n")
    observing = config.read_text(encoding="utf-8").replace('mode = "enforce"', 'mode = "observe"')
    config.write_text(observing, encoding="utf-8")
    refused = begun(config)
    assert refused.exit_code == 2
    assert "experiments.brisk.routes: r is in 'observe', where no arm acts" in refused.stderr
    config.write_text(observing.replace("streak = 2", "streaks = 2"), encoding="utf-8")
    wrong = begun(config)
    assert wrong.exit_code == 2
    assert "experiments.brisk.arms.brisk: " in wrong.stderr
    assert called("list", "--config", config.parent / "none.toml").exit_code == 2
    assert called("start", "brisk", "--config", config).exit_code == 2, "a reason is needed"


def test_it_can_be_stopped_whatever_it_shows(config: Path) -> None:
    begun(config)
    text = config.read_text(encoding="utf-8")
    config.write_text(text[: text.index("[routes.r]")], encoding="utf-8")
    stopped = called("stop", "brisk", "--config", config, "--reason", "its route is gone")
    assert stopped.exit_code == 0
    assert "route 'r' is not in the settings any more" in stopped.stderr
    displayed = called("show", "brisk", "--config", config)
    assert displayed.exit_code == 2
    assert "route 'r' is not in the settings any more" in displayed.stderr
