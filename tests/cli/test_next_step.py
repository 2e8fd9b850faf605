"""What `suffice status` says to do next works as it stands, and what a start warns of is so."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.console.made import decided
from tests.console.visitor import settings_in
from tests.control.made import traffic
from tests.control.test_upkeep import append

from suffice.cli.shell import DATA_DIR, given_data_dir
from suffice.wiring.startup import warn_of_lost_secret


@click.command()
@DATA_DIR
def show() -> None:
    click.echo(given_data_dir() or "none")


@pytest.mark.parametrize(("given", "named"), [(["--data-dir", "there"], "there"), ([], "none")])
def test_the_next_command_knows_the_data_directory_of_this_one(given: list[str], named: str) -> None:
    assert CliRunner().invoke(show, given).output.strip() == named
    assert given_data_dir() == "", "outside a command there is none"


def test_a_log_without_requests_has_no_secret_to_lose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SUFFICE_SALT", raising=False)
    settings = settings_in(tmp_path)
    append(tmp_path / "log.db", *decided("math", "as it came out", "x"))
    warn_of_lost_secret(settings)
    assert "secret is missing" not in caplog.text
    append(tmp_path / "log.db", *traffic(1, seed=3))
    warn_of_lost_secret(settings)
    assert "secret is missing" in caplog.text
