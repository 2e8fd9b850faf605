"""Exact Match measured three times: by a tool that knows nothing of Suffice, by `suffice status`, and by the plan.

The fake is right, wrong, or wrong for a while, by the question. The tool scores the answers that it
got; the log gets the gold answers as feedback and is asked for the same number. Refuses to know tables.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from suffice_testing import FakeRequest, Reply, ScriptedThought
from tests.clients.peers.environments import clean_environment
from tests.clients.peers.matrix import CLIENT_TIMEOUT_S, ClientBroke, at_rest
from tests.clients.peers.roster import PROGRAMS, ROOT, Client
from tests.clients.peers.stage import MODES, Mode, Stage, model_name, staged

N_QUESTIONS = 32
N_AT_ONCE = 2
DELAY_S = 0.008
EXAMINERS = (
    Client(name="inspect-ai", environment="inspect-ai", distribution="inspect-ai", program="inspect_em", scenes=()),
    Client(name="lm-eval", environment="lm-eval", distribution="lm_eval", program="lm_eval_em", scenes=()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One sum, and what the fake makes of it: the answer while it thinks, and the one it ends with."""

    text: str
    gold: int
    early: int
    final: int


def question(n: int) -> Question:
    """The n-th: every fifth is answered wrongly, and every eighth is right only in the end."""
    one, other = 11 + 7 * n, 5 + 3 * n
    gold = one + other
    final = gold + 1 if n % 5 == 4 else gold
    return Question(text=f"What is {one} + {other}?", gold=gold, early=final + 10 if n % 8 == 3 else final, final=final)


QUESTIONS = tuple(question(n) for n in range(N_QUESTIONS))
EM_FULL = Fraction(sum(q.final == q.gold for q in QUESTIONS), N_QUESTIONS)
EM_STOPPED = Fraction(sum(q.early == q.gold for q in QUESTIONS), N_QUESTIONS)


def question_of(seen: FakeRequest) -> Question:
    """Which question a request asks. Raises ValueError for any other text."""
    results = [q for q in QUESTIONS if q.text in seen.text]
    if len(results) != 1:
        raise ValueError("the request asks none of the questions")
    return results[0]


def answers(seen: FakeRequest) -> Reply:
    """What the fake says to a question."""
    q = question_of(seen)
    early, final = f"The answer is {q.early}.", f"The answer is {q.final}."
    steps = [("first I add the tens of both\n", early), ("then I add the ones of both\n", early)]
    steps += [(f"look at it once more, the {word} time now\n", early) for word in ("first", "second", "third")]
    steps += [(f"check the carry, the {word} time now\n", final) for word in ("first", "second", "third", "fourth")]
    return ScriptedThought(steps, final, reply=Reply(delay_s=DELAY_S))(seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """One exam in one mode."""

    mode: Mode | None  # None: direct
    em: float  # as the tool says
    em_status: float | None  # as `suffice status` says; None: direct, or nothing was governed
    n_stopped: int
    wrong: list[str]


def examined(tool: Client, folder: Path, home: Path) -> list[Sitting]:
    """The tool's sittings: direct, off, observe, enforce. Raises ClientBroke as `matrix.compared` does."""
    with staged(home, answers) as stage:
        plans = [(None, stage.url("direct"), "observe"), *((mode, stage.url("gateway"), mode) for mode in MODES)]
        results = _run(
            tool,
            folder,
            home,
            [
                {
                    "base_url": url,
                    "model": model_name(mode_named, "exam"),
                    "n_at_once": N_AT_ONCE,
                    "items": [{"question": q.text, "gold": str(q.gold)} for q in QUESTIONS],
                }
                for _, url, mode_named in plans
            ],
        )
        n_stopped = _label(stage)
        status = _status(stage)
    return [_sitting(plan[0], result, status, n_stopped) for plan, result in zip(plans, results, strict=True)]


def _sitting(mode: Mode | None, result: dict[str, Any], status: dict[str, Any], n_stopped: dict[str, int]) -> Sitting:
    measured = status.get(mode or "", {}).get("measured", {})
    ours = measured.get({"observe": "em_full", "enforce": "em_live"}.get(mode or "", "")) or {}
    em_status = ours.get("value")
    plan = EM_STOPPED if mode == "enforce" else EM_FULL
    stopped = n_stopped.get(mode or "", 0)
    wrong = []
    if result["n"] != N_QUESTIONS:
        wrong.append(f"{result['n']} questions were scored, not {N_QUESTIONS}")
    if abs(result["em"] - plan) > 1e-6:
        wrong.append(f"EM {result['em']:.4f}, planned {float(plan):.4f}")
    if mode in ("observe", "enforce") and (em_status is None or abs(em_status - result["em"]) > 1e-6):
        wrong.append(f"EM {result['em']:.4f}, suffice status says {em_status}")
    if (mode == "enforce") != (stopped == N_QUESTIONS):
        wrong.append(f"{stopped} runs were stopped")
    return Sitting(mode=mode, em=result["em"], em_status=em_status, n_stopped=stopped, wrong=wrong)


def _run(tool: Client, folder: Path, home: Path, exams: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(folder / "bin" / "python"), "-m", f"{PROGRAMS}.{tool.program}"],
        cwd=ROOT,
        env=clean_environment(home),
        input="".join(json.dumps(exam) + "\n" for exam in exams),
        capture_output=True,
        text=True,
        check=False,
        timeout=CLIENT_TIMEOUT_S,
    )
    seen = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    if done.returncode != 0 or len(seen) != len(exams):
        raise ClientBroke(f"{len(seen)} of {len(exams)} exams, exit {done.returncode}: {done.stderr[-1500:]}")
    return seen


def _label(stage: Stage) -> dict[str, int]:
    """Tell the gateway the right answer to each request; count the stopped ones by mode."""
    n_stopped: dict[str, int] = {}
    for episode in at_rest(stage, 0):
        results = re.fullmatch(r"chatcmpl-fake-(\d+)", episode.outcome.response_id or "")
        if results is None:
            raise ClientBroke(f"an episode without the upstream's id: {episode.outcome.response_id!r}")
        q = question_of(stage.fake.calls[int(results[1])].request)
        label = {
            "feedback_id": episode.request.episode_id,
            "episode_id": episode.request.episode_id,
            "gold": str(q.gold),
            "source": "exact-match",
        }
        request = urllib.request.Request(
            stage.url("gateway") + "/feedback", json.dumps(label).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            assert json.load(reply)["accepted"] is True
        n_stopped[episode.request.mode] = n_stopped.get(episode.request.mode, 0) + episode.outcome.stopped
    return n_stopped


def _status(stage: Stage) -> dict[str, Any]:
    code = "from suffice.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "status", "--config", str(stage.config), "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    return {report["route"]: report for report in reports}
