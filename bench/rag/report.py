"""What stopping saves on recorded retrieval runs, against five rounds and against what the model says.

    python -m bench.rag.report runs.jsonl [--max-em-drop 0.01] [--online 10]

Policies are fitted and their points picked on questions 1 to 500, and judged on 501 to 1,000, as far as they are
recorded: in a loop of five rounds, and in one that ends when the model says that it is done. Tokens are billed without
a prefix cache, and with one at two prices of a cached token. Where SUFFICE_RAG names the folder with the questions,
their features are read too, as a live route does. `--online N` also replays N streams of traffic like it from a cold
start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from bench.rag.questions import FOLDER, N_FIT, data_folder, read_questions
from numpy.typing import NDArray

from suffice.assurance.bounds import exact_binomial
from suffice.files import open_unpacked
from suffice.learn.features import DENSE
from suffice.replay.online.protocol import N_BLOCKS, OnlineOptions, OnlineReport, replay_online
from suffice.replay.study.policies import build_ladders, list_ladder_folds
from suffice.replay.study.runs import Halts, Runs, read_runs, stop_at_first
from suffice.replay.study.sets import pools_of
from suffice.replay.study.study import ReplayOptions, Study
from suffice.replay.study.sums import MARGIN
from suffice.replay.traces.read import Survey, survey
from suffice.replay.traces.rows import RunRow, decode_row, encode_row
from suffice.signals.features import FeatureSet

PRICES: Mapping[str, float] = {  # of a prompt token that the call before has read, against a new one
    "no prefix cache": 1.0,
    "cached tokens at a tenth": 0.1,
    "cached tokens free": 0.0,
}
FEWEST = 50  # questions on each side, to fit and judge at all
N_DRAWS = 10_000
STREAM = 12_000  # requests of a stream of `--online`
FULL, DONE = "five rounds", "the model says that it is done"  # the two baselines
WHOLE, OURS, IN_DONE = "whole runs", "ours", "in the loop that ends when the model says so"
MARGINS = {"": MARGIN, ", no margin": 0.0}  # standard errors between the target and the drop where a point is picked


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """One policy on the judged questions, shape (N,) each."""

    right: NDArray[np.float64]
    tokens: NDArray[np.float64]
    rounds: NDArray[np.float64]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    value: float
    low: float
    high: float

    def show(self, digits: int) -> str:
        value, low, high = (f"{100 * x:.{digits}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def position(row: RunRow) -> int:
    return int(json.loads(row.meta or "{}")["position"])


def read_recording(paths: Sequence[Path]) -> dict[str, list[RunRow]]:
    """The runs of each data set in the order of its questions, packed or not; a torn last line is left out."""
    rows: dict[str, list[RunRow]] = {}
    for path in paths:
        with open_unpacked(path) as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    row = decode_row(line, str(path), number)
                    rows.setdefault(row.dataset, []).append(row)
    return {name: sorted(of_set, key=position) for name, of_set in rows.items()}


def add_questions(rows: Sequence[RunRow], folder: Path, name: str) -> list[RunRow]:
    texts = {one.id: one.text for one in read_questions(folder, name)}
    return [msgspec.structs.replace(row, question=texts[row.question_id]) for row in rows]


def bill(row: RunRow, price: float) -> RunRow:
    """The run with tokens that were read before at a price."""
    read = json.loads(row.meta or "{}")["prompt_read"]
    steps = [
        msgspec.structs.replace(step, ctx_tokens=(step.ctx_tokens or 0) - n + round(price * n))
        for step, n in zip(row.steps, read, strict=True)
    ]
    total = sum(step.tokens + (step.ctx_tokens or 0) for step in steps)
    return msgspec.structs.replace(row, steps=steps, full_tokens=total)


def end_where_done(row: RunRow) -> RunRow:
    """The run of a loop that ends where the model first says that it is done, before it asks for anything else."""
    done = next((index for index, step in enumerate(row.steps) if step.stop_flag), len(row.steps) - 1)
    last = msgspec.structs.replace(row.steps[done], tokens=json.loads(row.meta or "{}")["done_tokens"][done])
    steps = [*row.steps[:done], last]
    return msgspec.structs.replace(
        row,
        steps=steps,
        full_answer=last.answer,
        full_em=bool(last.correct),
        full_tokens=sum(step.tokens + (step.ctx_tokens or 0) for step in steps),
    )


def write_set(rows: Sequence[RunRow], path: Path) -> Survey:
    path.write_bytes(b"".join(map(encode_row, rows)))
    (data,) = survey([path])
    return data


def judge(fit: Sequence[RunRow], judged: Sequence[RunRow], max_em_drop: float, seed: int) -> dict[str, Outcomes]:
    """The outcomes of every policy on the judged runs, in their order. Fits and picks on the others alone."""
    with tempfile.TemporaryDirectory() as folder:
        data, others = write_set(judged, Path(folder) / "judged.jsonl"), write_set(fit, Path(folder) / "fit.jsonl")
        longest = max(data.longest, others.longest)
        options, ladders = ReplayOptions(max_em_drop=max_em_drop, seed=seed), build_ladders("rounds", longest=longest)
        needs = tuple(dict.fromkeys([*list_ladder_folds(ladders), *FeatureSet(DENSE["rounds"]).needs]))
        runs, source = (read_runs(one, needs, probe_tokens=None, longest=longest) for one in (data, others))
    study, outcomes = Study(source, ladders, options), {WHOLE: outcomes_at(runs, runs.last)}
    for n in range(1, longest):
        label = "1 round" if n == 1 else f"{n} rounds"
        outcomes[label] = outcomes_at(runs, np.minimum(runs.starts[:-1] + n - 1, runs.last))
    for label, margin in MARGINS.items():
        study.options = replace(options, margin=margin)
        frozen = study.freeze(pools_of(ladders, options.scores), None)
        halts = study.applied.halts(frozen, runs)
        for name in (OURS, "published"):
            rung = frozen.rungs[name]
            note = "never stops" if rung is None else rung.label
            outcomes[f"{name}{label}"] = outcomes_of(runs, halts[name], note)
    outcomes["oracle: first right answer"] = outcomes_of(runs, stop_at_first(runs, runs.ok), "reads labels")
    return outcomes


def judge_loops(fit: Sequence[RunRow], judged: Sequence[RunRow], max_em_drop: float, seed: int) -> dict[str, Outcomes]:
    """Judge the loop of five rounds, and the one that ends where the model says so, on the same questions."""
    five = judge(fit, judged, max_em_drop, seed)
    fit_done, judged_done = (list(map(end_where_done, rows)) for rows in (fit, judged))
    done = judge(fit_done, judged_done, max_em_drop, seed)
    outcomes = {FULL: five.pop(WHOLE), DONE: done[WHOLE], **five}
    return outcomes | {f"{name}, {IN_DONE}": one for name, one in done.items() if name.startswith((OURS, "published"))}


def outcomes_at(runs: Runs, row: NDArray[np.int64], note: str = "") -> Outcomes:
    rounds = row - runs.starts[:-1] + 1
    return Outcomes(right=runs.ok[row].astype(float), tokens=runs.cost[row], rounds=rounds.astype(float), note=note)


def outcomes_of(runs: Runs, halts: Halts, note: str) -> Outcomes:
    at = outcomes_at(runs, halts.row, note)
    return Outcomes(right=runs.ok[halts.returned].astype(float), tokens=at.tokens, rounds=at.rounds, note=note)


def compare(policy: Outcomes, base: Outcomes, seed: int) -> tuple[Interval, Interval]:
    """EM lost and share of tokens saved against `base`: paired bootstrap over questions, 95 %."""
    n = len(base.right)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_DRAWS).astype(float)

    def interval(value: float, draws: NDArray[np.float64]) -> Interval:
        low, high = np.quantile(draws, [0.025, 0.975])
        return Interval(value=value, low=float(low), high=float(high))

    lost = base.right - policy.right
    saved = 1 - (weights @ policy.tokens) / (weights @ base.tokens)
    return (
        interval(float(lost.mean()), weights @ lost / n),
        interval(float(1 - policy.tokens.sum() / base.tokens.sum()), saved),
    )


COLUMNS = (
    *("policy", "rounds", "EM", "tokens", f"EM lost against {FULL}, points", "lost (exact 95 %), gained"),
    *(f"saved against {FULL}, %", "EM lost against the model's word", "saved against the model's word, %"),
)


def table(outcomes: Mapping[str, Outcomes], seed: int) -> Iterator[str]:
    yield f"| {' | '.join(COLUMNS)} |"
    yield "| --- " * len(COLUMNS) + "|"
    full, done = outcomes[FULL], outcomes[DONE]
    for name, one in outcomes.items():
        (drop, saved), (drop_done, saved_done) = compare(one, full, seed), compare(one, done, seed)
        lost, gained = int((full.right > one.right).sum()), int((one.right > full.right).sum())
        most = exact_binomial(lost, len(full.right), 0.95).high
        cells = (
            f"{name} ({one.note})" if one.note else name,
            f"{one.rounds.mean():.2f}",
            f"{100 * one.right.mean():.1f} %",
            f"{one.tokens.mean():,.0f}",
            drop.show(2),
            f"{lost} (at most {100 * most:.1f} %), {gained}",
            saved.show(1),
            drop_done.show(2),
            saved_done.show(1),
        )
        yield f"| {' | '.join(cells)} |"


def certified_after(report: OnlineReport) -> tuple[int, float | None]:
    """Streams that were certified at all, and the median request at which their first level was active."""
    firsts = [
        next((at for at, level in zip(s.course.requests, s.course.level, strict=True) if level > 0), None)
        for s in report.seeds
    ]
    known = [first for first in firsts if first is not None]
    return len(known), float(np.median(known)) if known else None


def online(rows: Sequence[RunRow], loop: str, n_seeds: int, max_em_drop: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        data = write_set(rows, Path(folder) / "rag.jsonl")
        options = OnlineOptions(max_em_drop=max_em_drop, n_seeds=n_seeds, resample=STREAM)
        report = replay_online(data, options)
    n_certified, after = certified_after(report)
    when = "" if after is None else f", after {after:,.0f} requests (median; to {STREAM // N_BLOCKS})"
    saved, lost = 100 * report.mean("reduction_late"), 100 * report.mean("drop_late")
    return (
        f"Traffic of {STREAM:,} requests, loop of {loop!r}, at most {100 * max_em_drop:g} points, 95 % sure: certified"
        f" in {n_certified} of {n_seeds} streams{when}. Second half: {saved:.1f} % saved, audits paid; drop"
        f" {lost:+.2f} points; {report.n_violations} streams over the budget."
    )


def describe(name: str, rows: Sequence[RunRow], asked: argparse.Namespace) -> Iterator[str]:
    fit, judged = ([row for row in rows if (position(row) > N_FIT) == later] for later in (False, True))
    features = "with" if rows[0].question is not None else "without"
    yield f"## {name}: {len(rows):,} questions recorded\n"
    yield (
        f"Fitted on {len(fit)} of questions 1 to {N_FIT}, judged on {len(judged)} of the others, {features} features of"
        " the question."
    )
    if min(len(fit), len(judged)) < FEWEST:
        yield f"Too few to fit and judge: needs {FEWEST} on each side. Of all questions:"
        yield from baselines([bill(row, 1.0) for row in rows])
        return
    for label, price in PRICES.items():
        yield f"\n### {label}\n"
        fit_billed, judged_billed = ([bill(row, price) for row in half] for half in (fit, judged))
        outcomes = judge_loops(fit_billed, judged_billed, asked.max_em_drop, asked.seed)
        yield from table(outcomes, asked.seed)
        if asked.online:
            billed = [bill(row, price) for row in rows]
            for loop, runs in {FULL: billed, DONE: list(map(end_where_done, billed))}.items():
                yield f"\n{online(runs, loop, asked.online, asked.max_em_drop)}"


def baselines(rows: Sequence[RunRow]) -> Iterator[str]:
    for label, of_loop in {FULL: rows, DONE: list(map(end_where_done, rows))}.items():
        ends = np.array([(row.full_em, row.full_tokens, len(row.steps)) for row in of_loop], dtype=float)
        right, tokens, rounds = ends.mean(axis=0)
        yield f"- {label}: EM {100 * right:.1f} %, {tokens:,.0f} tokens, {rounds:.2f} rounds"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="what bench.rag.record wrote")
    parser.add_argument("--max-em-drop", type=float, default=0.01, help="a fraction")
    parser.add_argument("--online", type=int, default=0, metavar="N", help="also N streams of traffic")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = data_folder() if os.environ.get(FOLDER) else None
    for name, rows in read_recording(asked.runs).items():
        known = add_questions(rows, folder, name) if folder else rows
        print("\n".join(describe(name, known, asked)), end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
