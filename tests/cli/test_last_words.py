"""What `suffice status` says of the last-good file while the log cannot be read."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.gateway.test_last_good import GOOD

from suffice.cli.inspect.status import status
from suffice.gateway.last_good import GoodRoute
from suffice.gateway.last_good import write_last_good as write_good
from suffice.store.routes.deployments import RouteDeployment
from suffice.types import Pause


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(status, [str(word) for word in arguments])


@pytest.mark.parametrize(("age_s", "serves"), [(60.0, "may be served until"), (7_200.0, "is too old to be served")])
def test_a_log_that_cannot_be_read_is_told_with_what_the_last_good_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, serves: str
) -> None:
    monkeypatch.setenv("SUFFICE_SALT", "ours")
    config = tmp_path / "suffice.toml"
    config.write_text(f"""
[upstreams.up]
url = "http://127.0.0.1:9"
[routes.r]
upstream = "up"
[store]
url = "sqlite:///{tmp_path}/log.db"
""")
    (tmp_path / "log.db").write_bytes(b"no database" * 1_000)
    alone = call("--config", config)
    begins = ["suffice status", "NO GATEWAY", "LOG DAMAGED"]
    assert (alone.exit_code, [line.partition(":")[0] for line in alone.stderr.splitlines()]) == (2, begins)
    paused = RouteDeployment(pause=Pause(route="p", number=1, cause="person", reason="bad\x1b[2J", author="ann"))
    good = replace(GOOD, at_s=time.time() - age_s, routes={**GOOD.routes, "p": GoodRoute(held=paused)})
    write_good(tmp_path / "log.db.good", good, secret="ours")
    result = call("--config", config)
    assert (result.exit_code, result.stdout) == (2, "")
    problem, _, _, output, other, one = result.stderr.splitlines()
    assert problem.startswith("suffice status: store")
    assert output.startswith(f"{tmp_path}/log.db.good records what was active at 20")
    assert serves in output
    assert one == "  r  certified, level 2 of 2, publication 3"
    assert other == "  p  PAUSED by ann: bad\ufffd[2J"
    assert call("--config", config, "--route", "p").stderr.splitlines()[4:] == [other]
    monkeypatch.setenv("SUFFICE_SALT", "theirs")
    assert "the last-good file cannot be used" in call("--config", config).stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.db", "log.db.good", "suffice.toml"]
