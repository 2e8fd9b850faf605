"""`suffice replay --online` with drifts that no signal shows, run times and late labels: what is told and refused."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result
from tests.cli.replayed import lines

from suffice.cli.main import main
from suffice.replay.traces.read import own_traces

OWN = own_traces("samples")
pytestmark = pytest.mark.usefixtures("elsewhere")  # the figure goes into the current folder


def online(*options: object) -> Result:
    return CliRunner().invoke(main, ["replay", "--online", str(OWN), *map(str, options)])


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize(
    "spec", ["silent=0.06@0.5", "ramp=0.08@0.5", "oscillate=0.08@0.5", "turns=5:0.06", "mix=largest>series:0.8@0.5"]
)
def test_each_drift_tells_alarms_loss_and_recovery(spec: str) -> None:
    request = ("--seeds", 1, "--run-time", 10, "--label-delay", "5-20", "--drift", spec)
    (one,) = lines(online(*request, "--json"))
    assert one["drift"] == spec
    assert one["drift_at"] == (0 if spec.startswith("turns") else one["n_requests"] // 2)
    assert one["loss_above_budget"] == 0, "nothing was ever stopped"
    assert one["false_alarms"] == 0
    assert one["recovery_requests"] == 0
    report = " ".join(online(*request, "--no-report").stdout.split())
    assert "0 points x requests lost above the budget, 0.00 false alarms before it (means)" in report


@pytest.mark.slow
def test_the_figure_of_a_drift_is_drawn() -> None:
    result = online("--seeds", 1, "--drift", "silent=0.06@0.5")
    assert result.exit_code == 0, result.output
    assert "course: replay-report/own_samples.online.png" in result.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--label-delay", "800-200"), "allowed: requests as 500, or least to most as 200-800"),
        (("--label-delay", "soon"), "--label-delay: got 'soon'"),
        (("--label-delay", "-5"), "--label-delay: got '-5'"),
        (("--run-time", "-1"), "--run-time"),
        (("--drift", "silent=0.06"), "silent=SHARE@AT, ramp=SHARE@AT, oscillate=SHARE@AT, turns=N:SHARE"),
        (("--drift", "mix=largest>sums:0.8@0.5"), "no request is of class 'sums'; known: largest, series"),
        (("--drift", "turns=5:0.06", "--resample", 500), "--resample and --drift: choose one"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_exit_2(options: tuple[object, ...], sentence: str) -> None:
    result = online(*options)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert result.stdout == ""


def test_run_times_are_refused_where_they_would_be_ignored() -> None:
    result = CliRunner().invoke(main, ["replay", str(OWN), "--run-time", "9"])
    assert result.exit_code == 2
    assert "--run-time: only with --online" in result.stderr
