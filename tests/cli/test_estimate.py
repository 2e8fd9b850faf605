"""`suffice estimate` as a person and a program use it. It opens no connection, so no server stands here."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from suffice.cli.main import main


def estimate(*options: object) -> Result:
    return CliRunner().invoke(main, ["estimate", *map(str, options)])


def log(folder: Path, answers: list[list[str]]) -> Path:
    """One request with several choices a minute."""
    file = folder / "log.jsonl"
    rows = []
    for i, choices in enumerate(answers):
        usage = {"prompt_tokens": 100, "completion_tokens": 20 * len(choices)}
        response = {"model": "m", "choices": [{"message": {"content": a}} for a in choices], "usage": usage}
        request = {"messages": [{"role": "user", "content": f"question {i}"}], "n": len(choices)}
        rows.append(json.dumps({"timestamp": 1.7e9 + 60 * i, "request": request, "response": response}))
    file.write_text("\n".join(rows), "utf-8")
    return file


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    rng = random.Random(1)
    return log(tmp_path, [[rng.choice("4444444444444445") for _ in range(16)] for _ in range(200)])


def test_a_person_reads_saving_audits_days_and_what_is_assumed(votes: Path) -> None:
    result = estimate(votes, "--scorer", "number")
    assert result.exit_code == 0, result.output
    assert "200 calls (openai), 0 records left out; 200 requests" in result.stdout
    assert "beta 0.95" in result.stdout
    assert "EM drop at most 2 points at 95%, without labels" in result.stdout
    assert " days" in result.stdout
    assert "a day is like the 3.3 hours in the log" in result.stdout
    assert "Nothing is promised before live audits" in result.stdout


def test_a_program_reads_the_same_as_json_and_twice_the_same(votes: Path) -> None:
    first, second = (estimate(votes, "--scorer", "number", "--max-em-drop", 0.01, "--json") for _ in range(2))
    assert first.stdout == second.stdout
    results: dict[str, Any] = json.loads(first.stdout)
    assert results["max_em_drop"] == 0.01
    assert results["formats"] == ["openai"]
    assert [p["judged_by"] for p in results["promises"]] == ["agreement", "labels"]
    saving = results["promises"][0]["saving"]
    assert 0 <= saving["low"] <= saving["middle"] <= saving["high"] <= 1


def test_a_smaller_budget_never_promises_more(votes: Path) -> None:
    def saving(budget: float) -> float:
        results = json.loads(estimate(votes, "--scorer", "number", "--max-em-drop", budget, "--json").stdout)
        return float(results["promises"][0]["saving"]["middle"])

    assert saving(0.005) <= saving(0.02) <= saving(0.05)


WATCHED = """
import sys
sys.addaudithook(lambda event, _: sys.exit(f"it did {event}") if event.startswith("socket.") else None)
sys.argv = ["suffice", "estimate", *sys.argv[1:]]
from suffice.cli.main import main
main()
"""


def test_no_socket_is_opened(votes: Path) -> None:
    command = [sys.executable, "-c", WATCHED, str(votes), "--scorer", "number"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "beta 0.95" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-em-drop", "2"), "--max-em-drop: got 2.0; a fraction between 0 and 1"),
        (("--confidence", "1"), "--confidence: got 1.0"),
        (("--scorer", "nubmer"), "did you mean 'number'"),
        (("--like", "none.jsonl"), "none.jsonl"),
    ],
)
def test_what_cannot_be_estimated_exits_with_two_and_a_sentence(
    options: tuple[str, ...], message: str, votes: Path
) -> None:
    result = estimate(votes, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_log_that_says_nothing_names_the_way_out(tmp_path: Path) -> None:
    result = estimate(log(tmp_path, [["4"]] * 20))
    assert result.exit_code == 2
    assert "name recorded traces of traffic like yours with --like" in result.stderr
