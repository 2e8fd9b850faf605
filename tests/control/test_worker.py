"""The worker on a real log: killed, raced, asked by hand, and with routes that are in trouble."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from suffice.cli.main import main
from suffice.control import worker_process
from suffice.control.jobs.base import QUIET_S, JobReport, Worker
from suffice.control.jobs.certify import Certify
from suffice.settings import Settings, Store, parse_settings
from suffice.store.database.views import job_history
from suffice.store.database.writer import LogWriter
from suffice.store.routes.deployments import read_decided
from suffice.store.rows.events import Event
from suffice.wiring.worker import open_worker
from suffice_testing import FakeUpstream
from tests.control.made import CONTROL, ROUTE, traffic
from tests.gateway_process import GatewayProcess

N = 400


def settings_for(folder: Path, **routes: Any) -> Settings:
    route = msgspec.to_builtins(ROUTE)
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "routes": {"r": route, **{name: {**route, **changes} for name, changes in routes.items()}},
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
            "control": msgspec.to_builtins(CONTROL),
        }
    )


def fill(folder: Path, events: Sequence[Event], *, at_s: float = 1.0) -> None:
    log = LogWriter(Store(url=f"sqlite:///{folder / 'log.db'}"), now=lambda: at_s)
    for event in events:
        assert log.append(event)
    assert log.drain(20)
    log.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the log of four hundred full runs; not to be changed."""
    folder = tmp_path_factory.mktemp("filled")
    fill(folder, traffic(N))
    return folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    shutil.copy(filled / "log.db", tmp_path / "log.db")
    return tmp_path


def decided(folder: Path) -> list[str]:
    """Every decision in the log, without who made it."""
    with closing(sqlite3.connect(folder / "log.db")) as connection:
        rows = connection.execute(
            "SELECT kind, body FROM events WHERE kind IN ('alarm_raised', 'enforcement_paused', 'enforcement_resumed',"
            " 'epoch_began', 'label_wanted', 'policy_published') ORDER BY seq"
        ).fetchall()
    plain = [(kind, json.loads(body)) for kind, body in rows]
    for _, body in plain:
        next(iter(body.values())).pop("author", None)
    return [json.dumps(one, sort_keys=True) for one in plain]


def only(here: Worker, name: str = "certify", *, anew: bool = False) -> JobReport:
    """What the one route's job did, asked for by hand.

    anew  as by a worker that has just begun
    """
    if anew:
        next(job for job in here.jobs if job.name == name).forget()
    reports = here.once(name)
    assert reports is not None
    (report,) = reports
    return report


@pytest.fixture(scope="module")
def expected(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What an undisturbed worker decides."""
    folder = tmp_path_factory.mktemp("expected")
    shutil.copy(filled / "log.db", folder / "log.db")
    with open_worker(settings_for(folder)) as here:
        assert here.once("certify") is not None
    return decided(folder)


def test_what_a_worker_decides_is_in_force_and_said(folder: Path, expected: list[str]) -> None:
    assert sum("policy_published" in one for one in expected) >= 2
    with open_worker(settings_for(folder)) as here:
        report = only(here)
        assert (report.ok, report.route, report.at) == (True, "r", N)
        assert report.summary.startswith("epoch 1 begins (cold start); level")
        assert only(here).summary == ""
    assert decided(folder) == expected
    assert read_decided(folder / "log.db").of("r").level > 0
    assert [run.summary for run in job_history(folder / "log.db")] == [report.summary, "nothing to do"]


def test_a_second_worker_and_a_later_one_add_nothing(folder: Path, expected: list[str]) -> None:
    with open_worker(settings_for(folder)) as first, open_worker(settings_for(folder)) as second:
        assert first.round()
        assert second.round() == []
    with open_worker(settings_for(folder)) as later:
        assert [report.summary for report in later.once("certify") or ()] == [""]
    assert decided(folder) == expected


def test_a_worker_does_a_round_for_new_rows_for_the_clock_and_for_leases_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, clock_s = list[float](), [0.0]
    with open_worker(settings_for(folder)) as here, open_worker(settings_for(folder)) as second:
        here.round()

        def one_round(_: Worker) -> list[JobReport]:
            rounds.append(clock_s[0])
            return []

        monkeypatch.setattr(Worker, "round", one_round)
        here.monotonic_s = second.monotonic_s = lambda: clock_s[0]

        def n_rounds(worker: Worker) -> int:
            before = len(rounds)
            assert worker.round_if_due() == []
            return len(rounds) - before

        assert [n_rounds(here) for _ in range(4)] == [1, 0, 0, 0]
        fill(folder, traffic(1, first=9_000))
        assert [n_rounds(here) for _ in range(3)] == [1, 0, 0]
        clock_s[0] += QUIET_S
        assert [n_rounds(here) for _ in range(3)] == [1, 0, 0]
        assert [n_rounds(second) for _ in range(3)] == [1, 1, 1], "it waits for the first one's leases"


KILLED = """
import os, signal, sys
from pathlib import Path
import suffice.store.database.decisions as decisions
from tests.control.test_worker import settings_for
from suffice.wiring.worker import open_worker
n_left = int(sys.argv[2])
write = decisions.Decisions.write
def dies(self, *arguments):
    global n_left
    n_left -= 1
    if not n_left:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, *arguments)
decisions.Decisions.write = dies
with open_worker(settings_for(Path(sys.argv[1]))) as here:
    here.once("certify")
"""


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("n_writes", [2, 3])
def test_a_worker_killed_before_a_write_is_followed_by_one_that_decides_the_same(
    folder: Path, expected: list[str], n_writes: int
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(n_writes)], env=environment, check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(decided(folder)) == n_writes - 1
    with open_worker(settings_for(folder)) as here:
        assert only(here).ok
    assert decided(folder) == expected


def test_a_log_in_two_halves_is_decided_as_in_one(tmp_path: Path, expected: list[str]) -> None:
    events = traffic(N)
    with open_worker(settings_for(tmp_path)) as here:
        fill(tmp_path, events[:500])
        here.round()
        fill(tmp_path, events[500:])
        here.round()
    published = [one for one in decided(tmp_path) if "policy_published" in one]
    assert published == [one for one in expected if "policy_published" in one]


# ---------------------------------------------------------------- trouble


def test_one_routes_trouble_is_not_the_others(
    folder: Path, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(folder, bad={"scorer": "text"})
    with open_worker(settings) as here:
        certify = next(job for job in here.jobs if job.name == "certify")
        assert isinstance(certify, Certify)
        well = certify.matches

        def broken(route: Any) -> Any:
            if route.scorer == "text":
                raise RuntimeError("secret prompt")
            return well(route)

        certify.matches, certify.monotonic_s = broken, lambda: 0.0  # no time passes, however busy the machine
        reports = {report.route: report for report in here.round()}
        assert reports["r"].ok
        assert not reports["bad"].ok
        assert "RuntimeError" in reports["bad"].summary
        assert "secret prompt" not in reports["bad"].summary + caplog.text
        assert here.round() == [], "it is left alone for a while"
    assert [one for one in decided(folder) if '"r"' in one] == expected


def test_an_artefact_that_is_gone_ends_its_epoch(folder: Path) -> None:
    with open_worker(settings_for(folder)) as here:
        here.once("certify")
    with closing(sqlite3.connect(folder / "log.db")) as connection:
        connection.execute("DELETE FROM artefacts")
        connection.commit()
    with open_worker(settings_for(folder)) as here:
        report = only(here)
    assert "epoch 2 begins (version v-" in report.summary
    held = read_decided(folder / "log.db").of("r")
    assert (held.level, held.in_burst, held.n_epochs) == (0, True, 2)


def test_routes_with_an_owners_policy_are_left_to_their_owner(folder: Path) -> None:
    settings = settings_for(folder)
    policy = {"policy": "beta"}
    for change in ({"mode": "observe"}, {"uncertified": True}):
        owned = msgspec.structs.replace(settings.routes["r"], policy=policy, **change)
        with open_worker(msgspec.structs.replace(settings, routes={"r": owned})) as here:
            assert here.once("certify") == []
    assert decided(folder) == []


# ---------------------------------------------------------------- by hand


@pytest.fixture
def command(folder: Path) -> Callable[..., click.testing.Result]:
    tables = msgspec.to_builtins(settings_for(folder))
    for route in tables["routes"].values():
        for name in [name for name, value in route.items() if value is None]:
            del route[name]
    from tests.gateway_process import nested_toml

    tables = {name: tables[name] for name in ("store", "control")}
    tables["upstreams"] = {"up": {"url": "http://127.0.0.1:1"}}
    tables["routes"] = {
        "r": {
            "upstream": "up",
            "kind": "samples",
            "samples": 8,
            "scorer": "number",
            "mode": "enforce",
            "max_em_drop": 0.08,
            "confidence": 0.9,
        }
    }
    (folder / "suffice.toml").write_text(nested_toml(tables), encoding="utf-8")

    def run(*arguments: str) -> click.testing.Result:
        return click.testing.CliRunner().invoke(main, [*arguments, "--config", str(folder / "suffice.toml")])

    return run


def test_a_person_runs_a_job_and_reads_what_was_done(command: Callable[..., click.testing.Result]) -> None:
    done = command("worker", "--once", "certify")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("r: epoch 1 begins (cold start); level")
    assert "r: nothing to do" in command("worker", "--once", "certify").stdout
    history = command("worker", "--history").stdout.splitlines()
    assert len(history) == 2
    assert "certify r" in history[0]
    rows = [json.loads(line) for line in command("worker", "--history", "--json").stdout.splitlines()]
    assert [row["ok"] for row in rows] == [True, True]
    wrong = command("worker", "--once", "clean")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("suffice worker: --once: unknown job 'clean'; known: certify, monitor, retrain, ")


def test_a_person_takes_enforcement_away_and_gives_it_back(
    command: Callable[..., click.testing.Result], folder: Path
) -> None:
    command("worker", "--once", "certify")
    level = read_decided(folder / "log.db").of("r").level
    assert command("pause", "r", "--reason", "maintenance", "--author", "ann", "--wait", "0").exit_code == 0
    held = read_decided(folder / "log.db").of("r")
    assert held.pause is not None
    assert (held.level, held.pause.cause, held.pause.author) == (0, "person", "ann")
    again = command("pause", "r", "--reason", "again")
    assert (again.exit_code, again.stderr) == (1, "suffice pause: route r is paused already: maintenance\n")
    assert command("resume", "r", "--reason", "done", "--author", "bob", "--wait", "0").exit_code == 0
    assert read_decided(folder / "log.db").of("r").level == level > 0
    assert command("resume", "r", "--reason", "once more").exit_code == 1
    unknown = command("pause", "q", "--reason", "x")
    assert (unknown.exit_code, unknown.stderr) == (2, "suffice pause: unknown route 'q'; known: r\n")


def test_status_says_where_a_route_stands_what_is_missing_and_what_happened_last(
    command: Callable[..., click.testing.Result], folder: Path
) -> None:
    def lines() -> dict[str, str]:
        result = command("status", "--all", "--route", "r")
        assert result.exit_code == 0, result.output
        rows = [line for line in result.stdout.splitlines() if line.startswith("  ")]
        return {line[2:24].strip(): line[25:] for line in rows}

    before = lines()
    assert before["phase"] == "all in full: no control loop has begun with this route"
    command("worker", "--once", "certify")
    level = read_decided(folder / "log.db").of("r").level
    then = lines()
    assert then["phase"] == f"certified, level {level} of 40: a drop below 8 points at 90%"
    assert " audits in the window (" in then["evidence"]
    assert then["next level"] == "none: this is the last"
    assert (then["last alarm"], then["control loop"][:11]) == ("none", "NOT RUNNING")
    assert int(then["labels wanted"].partition(":")[0]) > 3
    with open_worker(settings_for(folder)) as here:
        here.round()
        assert "control loop" not in lines(), "somebody looks after it"
    command("pause", "r", "--reason", "maintenance")
    assert lines()["phase"] == "PAUSED until somebody resumes it: maintenance"
    state = json.loads(command("status", "--route", "r", "--json").stdout)["control"]
    assert (state["phase"], state["level"], state["epoch"], state["n_levels"]) == ("paused", 0, 1, 40)


# ---------------------------------------------------------------- beside a gateway


@pytest.mark.slow
async def test_the_worker_beside_decides_tells_and_is_started_again_when_it_dies(folder: Path) -> None:
    settings, n_notified = settings_for(folder), 0
    quick = msgspec.structs.replace(settings, control=msgspec.structs.replace(settings.control, period_s=0.1))

    def notify() -> None:
        nonlocal n_notified
        n_notified += 1

    def owners() -> list[int]:
        with closing(sqlite3.connect(folder / "log.db")) as connection:
            return [pid for (pid,) in connection.execute("SELECT pid FROM owners WHERE pid <> ?", (os.getpid(),))]

    async with worker_process.run_worker_process(quick, notify, first_s=0.0):
        async with asyncio.timeout(120):  # the child is of low priority, and on a busy machine its imports take long
            while not n_notified:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.02)
            assert read_decided(folder / "log.db").of("r").n_epochs == 1
            first = owners()[-1]
            os.kill(first, signal.SIGKILL)
            while owners()[-1] == first:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)
        second = owners()[-1]
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


async def test_no_worker_is_started_where_none_is_wanted(folder: Path) -> None:
    settings = settings_for(folder)
    off = msgspec.structs.replace(settings, control=msgspec.structs.replace(settings.control, enabled=False))
    owned = {"r": msgspec.structs.replace(settings.routes["r"], policy={"policy": "beta"}, uncertified=True)}
    for one in (off, msgspec.structs.replace(settings, routes=owned)):
        async with worker_process.run_worker_process(one, lambda: pytest.fail("told"), first_s=0.0):
            await asyncio.sleep(0.05)
    assert decided(folder) == []


@pytest.mark.slow
def test_a_gateway_that_is_killed_leaves_no_worker_behind(folder: Path) -> None:
    with FakeUpstream.in_thread() as fake:
        raw = {
            "upstreams": {"up": {"url": fake.url}},
            "control": {"period_s": 0.1},
            "routes": {"r": {"upstream": "up", "kind": "samples", "samples": 4, "mode": "enforce"}},
        }
        with pytest.raises(AssertionError, match="killed"), GatewayProcess.serving(folder, raw) as g:
            end_s = time.monotonic() + 120  # the worker is of low priority, and on a busy machine its imports take long
            workers: list[int] = []
            while not workers and time.monotonic() < end_s:
                time.sleep(0.1)
                with closing(sqlite3.connect(folder / "log.db")) as connection:
                    rows = connection.execute("SELECT pid FROM owners WHERE pid <> ?", (g.process.pid,)).fetchall()
                workers = [pid for (pid,) in rows if pid != os.getpid()]
            assert workers
            g.process.kill()
            g.process.wait()
            while time.monotonic() < end_s and Path(f"/proc/{workers[-1]}").exists():
                time.sleep(0.05)
            assert not Path(f"/proc/{workers[-1]}").exists()
            raise AssertionError("killed")


def test_a_worker_that_starts_before_the_log_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "suffice.toml").write_text(
        '[upstreams.up]\nurl = "http://127.0.0.1:1"\n'
        '[routes.r]\nupstream = "up"\nkind = "samples"\nsamples = 8\nscorer = "number"\n'
        f'[store]\nurl = "sqlite:///{tmp_path / "log.db"}"\n',
        encoding="utf-8",
    )
    entry = "from suffice.cli.main import main; main()"
    words = ["worker", "--config", str(tmp_path / "suffice.toml")]
    with subprocess.Popen([sys.executable, "-c", entry, *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert "log.db: does not exist" in line
            assert line.endswith("; waiting for it\n")
            assert not (tmp_path / "log.db").exists(), "a wrong name makes no empty log"
            fill(tmp_path, traffic(5))
            until_s = time.monotonic() + 60
            while not list(job_history(tmp_path / "log.db")):
                assert process.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.05)
        finally:
            process.terminate()
    assert process.returncode == 0
