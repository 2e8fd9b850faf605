"""Writes a log of simulated traffic with an experiment, and prints what `suffice experiment show` reports about it.

    python -m bench.claims.experiment_log [--requests 20000] [--seed 0]

Eight samples per request on a route of votes; half of the conversations stop at two equal answers in a row. Samples are
almost always correct for seven questions in ten, and in three of five cases for the others. One request in ten is an
audit; one person in four rates, from 1 to 5, and rates both arms alike.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

import click
from click.testing import CliRunner

from suffice.cli.main import main as suffice
from suffice.rollout.experiment import RunningExperiment, draw_arms, units_of
from suffice.settings import Store
from suffice.store.database.writer import LogWriter
from suffice.store.routes.experiments import read_experiments
from suffice.store.rows.events import Event, FeedbackEvent
from suffice.types import Feedback, Outcome, Query, Request, StepRecord, Usage

SETTINGS: Final = """
[upstreams.box]
url = "http://127.0.0.1:8080"

[store]
url = "sqlite:///{folder}/suffice.db"

[routes.quiz]
upstream = "box"
kind = "samples"
samples = 8
scorer = "number"
mode = "enforce"
policy = {{ policy = "stable-answer", streak = 4 }}
uncertified = true

[experiments.brisk]
routes = ["quiz"]
unit = "conversation"
primary = "tokens"
margins = {{ em = 0.02, satisfaction = 0.03 }}

[experiments.brisk.arms.full]
full = true

[experiments.brisk.arms.brisk]
policy = {{ policy = "stable-answer", streak = 2 }}
"""
CHUNK: Final = 5_000  # requests that are written at once


def sample(index: int, tokens: int, answer: str) -> StepRecord:
    """One sample of a request, as the log keeps it."""
    return StepRecord(
        index=index,
        tokens=tokens,
        answer=answer,
        answer_source="sample",
        confidence=None,
        entropy=None,
        probe_tokens=0,
        action="continue",
        reason="",
    )


def episode(one: RunningExperiment, number: int, rng: random.Random) -> list[Event]:
    """One request with its outcome and what was said of it."""
    easy, gold = rng.random() < 0.7, str(rng.randrange(100, 999))
    p_right = 0.97 if easy else 0.6
    answers = [gold if rng.random() < p_right else str(rng.randrange(10, 99)) for _ in range(8)]
    tokens = [rng.randrange(40, 90) if easy else rng.randrange(90, 240) for _ in answers]
    audit = rng.random() < 0.1
    arms = draw_arms([one], route="quiz", units=units_of("", request=f"c{number}"), salt="example")
    brisk = arms[0].arm == "brisk" and not audit
    stop = next((at + 1 for at in range(1, 8) if answers[at] == answers[at - 1]), 8) if brisk else 8
    votes = Counter(answers[:stop])
    answer = answers[stop - 1] if stop < 8 else max(votes, key=lambda one: votes[one])
    name = f"ep_{number:06}"
    request = Request(
        episode_id=name,
        route="quiz",
        kind="samples",
        mode="enforce" if arms[0].arm == "brisk" else "observe",
        model="m",
        stream=False,
        n_samples=8,
        audit=audit,
        propensity=0.1 if audit else 0.9,
        policy_version="p",
        certified=False,
        question_key=f"q{number}",
        ungoverned=None,
        received_at_s=0.0,
        unit=f"u{number}",
        arms=arms,
        query=Query(query_class="easy" if easy else "hard", n_words=rng.randrange(8, 20) + (0 if easy else 15)),
    )
    outcome = Outcome(
        episode_id=name,
        end_reason="stopped" if stop < 8 else "done",
        status=200,
        answer=answer,
        response_id=None,
        usage=Usage(prompt_tokens=30, completion_tokens=sum(tokens[:stop])),
        steps=tuple(sample(*drawn) for drawn in zip(range(1, stop + 1), tokens, answers, strict=False)),
        stopped=stop < 8,
        stop_step=stop if stop < 8 else None,
        duration_s=sum(tokens[:stop]) / 150,
    )
    events: list[Event] = [request, outcome]
    if audit:
        events.append(FeedbackEvent(Feedback(feedback_id=f"g{name}", episode_id=name, gold=gold, source="exact-match")))
    if rng.random() < 0.25:
        stars = rng.choices((1, 2, 3, 4, 5), (5, 8, 17, 40, 30) if answer == gold else (40, 25, 20, 10, 5))[0]
        events.append(FeedbackEvent(Feedback(feedback_id=f"r{name}", episode_id=name, rating=stars, source="user")))
    return events


def command(*arguments: str) -> str:
    done = CliRunner().invoke(suffice, ["experiment", *arguments])
    if done.exit_code:
        raise click.ClickException(done.output)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.claims.experiment_log", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "suffice.toml"
        config.write_text(SETTINGS.format(folder=folder), encoding="utf-8")
        why = ("--reason", "are two equal answers enough?", "--author", "Ada")
        command("start", "brisk", "--config", str(config), *why)
        store = Store(url=f"sqlite:///{folder}/suffice.db")
        one = read_experiments(Path(folder) / "suffice.db")[0].experiment
        for begin in range(0, asked.requests, CHUNK):
            log = LogWriter(store, now=time.time)
            for number in range(begin, min(begin + CHUNK, asked.requests)):
                for event in episode(one, number, rng):
                    assert log.append(event)
            log.close(timeout_s=60)
        begin_s = time.process_time()
        print(command("show", "brisk", "--config", str(config)))
        print(f"{time.process_time() - begin_s:.1f} s of CPU time to look at {asked.requests:,} requests")


if __name__ == "__main__":
    main()
