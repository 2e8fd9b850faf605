"""The unit starts a command that exists, with a data directory of its own, and systemd finds no fault in it."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from suffice.cli.main import main
from suffice.settings import Settings
from suffice.wiring.files import DATA_DIR
from tests.house.tree import ROOT

FILE = ROOT / "deploy" / "systemd" / "suffice.service"
TEXT = FILE.read_text(encoding="utf-8")


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", TEXT, re.MULTILINE)


def test_the_command_and_its_options_exist() -> None:
    (line,) = values("ExecStart")
    _, name, *options = shlex.split(line)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    known = {option for one in command.params for option in one.opts}
    assert {one for one in options if one.startswith("--")} <= known


def test_what_is_written_goes_into_the_state_directory() -> None:
    assert f"{DATA_DIR}=%S/suffice" in values("Environment")
    assert values("StateDirectory") == ["suffice"]
    assert values("ProtectSystem") == ["strict"]


def test_live_streams_may_finish() -> None:
    assert int(values("TimeoutStopSec")[0]) > Settings().server.grace_s


def test_calls_that_suffice_makes_at_its_start_are_not_filtered() -> None:
    """It raises its limit of open files and lowers the worker's priority: of @resources, whose filter would kill it."""
    assert not [one for one in values("SystemCallFilter") if "@resources" in one]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_it_and_calls_it_well_confined(tmp_path: Path) -> None:
    unit = tmp_path / "suffice.service"
    program = tmp_path / "suffice"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    unit.write_text(TEXT.replace("/usr/lib/suffice/bin/suffice", str(program)), encoding="utf-8")
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "suffice.service" not in verified.stderr, verified.stderr
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    rated = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout[-500:]


def test_the_file_has_no_section_or_key_twice_that_systemd_reads_once() -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(TEXT)
    assert parser.sections() == ["Unit", "Service", "Install"]
    keys = re.findall(r"^(\w+)=", TEXT, re.MULTILINE)
    assert {key for key in keys if keys.count(key) > 1} <= {"SystemCallFilter", "Environment"}
