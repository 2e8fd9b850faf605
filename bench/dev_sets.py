"""What can be saved on recorded runs of other people's models, at four targets: published rules against ours.

    SUFFICE_TRACES=folder python bench/dev_sets.py [--only NAME ...] [--targets 0 0.005 0.01 0.02]

Every `*.dev.parquet` in the folder is one set, and two of them stand here twice: with the weak runs left out, and with
one task alone. *Frozen*: for each fifth of the questions, scores were fitted and the point picked on the other four.
*Hindsight*: the point was picked on the very questions of the figure. *Misses*: share of 200 halvings of the questions
in which a point picked on one half misses the target on the other. Where probes cost something, the set is shown
twice. Models, picks and draws follow from the seed, so the table is the same on every machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nested import NestedRungs, nest, open_study, share_of, without_probes
from suffice.errors import SufficeError
from suffice.replay.study.runs import stop_at_first
from suffice.replay.study.scores import SCORES
from suffice.replay.study.sets import pools_of
from suffice.replay.study.study import LadderPool, Study
from suffice.replay.study.sums import QuestionSums, SumsFold
from suffice.replay.traces.read import Survey, survey

TARGETS = (0.0, 0.005, 0.01, 0.02)
HEAD = (
    "| target | published, hindsight | published, frozen | drop | misses | ours, hindsight | ours, frozen | drop |"
    " misses | tuned plainly misses: published / ours | ≥ frozen? | ≥ 0.9 × hindsight? |"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One set as it is looked at here."""

    file: str
    where: str | None = None
    min_run_em: float | None = None

    @property
    def name(self) -> str:
        more = [self.where or "", "" if self.min_run_em is None else f"runs with EM > {self.min_run_em:g}"]
        return ", ".join(part for part in (self.file.removesuffix(".dev.parquet"), *more) if part)


def cases(folder: Path) -> Iterator[Case]:
    """Every set of the folder, and what two of them are looked at for besides."""
    for path in sorted(folder.glob("*.dev.parquet")):
        if path.name.startswith("sc_epoch_aime."):
            yield Case(file=path.name, min_run_em=0.3)
        else:
            yield Case(file=path.name)
        if path.name.startswith("cot_gemma12b."):
            yield Case(file=path.name, where="task=mmlu_pro")


def show(data: Survey, name: str, targets: Sequence[float]) -> None:
    study = open_study(data, scores=SCORES)
    pools = {pool.name: pool for pool in pools_of(study.ladders, SCORES)}
    runs = study.runs
    print(
        f"\n### {name}\n\n{data.kind}, {len(runs):,} runs of {len(set(runs.question)):,} questions;"
        f" EM {runs.full_ok.mean():.3f}; {runs.full_tokens.mean():,.0f} tokens a run;"
        f" oracles: {oracles(study)}\n"
    )
    charged = nest(study)
    shown = [("", charged)]
    if charged.all.sums.of("probes").any():
        shown = [("probes charged", charged), ("probes not charged", nest(study, probes_charged=False))]
    for title, nested in shown:
        if title:
            print(f"*{title}*\n")
        print(HEAD + "\n" + "|" + " --- |" * (HEAD.count("|") - 1))
        for target in targets:
            print(row(nested, pools["published"], pools["ours"], target), flush=True)
        print()


def oracles(study: Study) -> str:
    """What nobody can reach: the first step with the full run's answer, and the first with a right one."""
    runs = study.runs
    summing = SumsFold(2)
    summing.add(runs, [stop_at_first(runs, runs.same), stop_at_first(runs, runs.ok)])
    sums = without_probes(summing.sums())
    at = sums.measure(sums.weights(None))
    agree, correct = (f"{saved:.1%}" for saved in at.saved[0])
    return f"{agree} saved at the first step with the full run's answer, {correct} at the first right one"


def row(nested: NestedRungs, published: LadderPool, ours: LadderPool, target: float) -> str:
    rule, late = nested.hindsight(published, target)
    theirs, mine = nested.frozen(published, target), nested.frozen(ours, target)
    _, my_late = nested.hindsight(ours, target)
    best, hindsight = reduction(mine), reduction(late)
    misses = [nested.miss_share(pool, target) for pool in (published, ours)]
    plain = [nested.miss_share(pool, target, margin=None) for pool in (published, ours)]
    cells = [
        f"{100 * target:g}",
        f"{hindsight:.1%} ({rule})",
        f"{reduction(theirs):.1%}",
        f"{100 * drop(theirs):+.2f}",
        f"{misses[0]:.0%}",
        f"{reduction(my_late):.1%}",
        f"**{best:.1%}**",
        f"{100 * drop(mine):+.2f}",
        f"{misses[1]:.0%}",
        f"{plain[0]:.0%} / {plain[1]:.0%}",
        verdict(best >= reduction(theirs) - 5e-4, mine, theirs, target),
        "yes" if best >= 0.9 * hindsight - 5e-4 else f"no ({best / hindsight:.2f})",
    ]
    return "| " + " | ".join(cells) + " |"


def verdict(wins: bool, mine: QuestionSums, theirs: QuestionSums, target: float) -> str:
    """Does ours save as much as the published rule frozen in the same way? To a twentieth of a point."""
    said = "yes" if wins else "no"
    if wins and drop(mine) > target + 1e-9 >= drop(theirs):
        return f"{said}, but only ours is over the target"
    if not wins and drop(theirs) > target + 1e-9 >= drop(mine):
        return f"{said}, but only theirs is over the target"
    return said


def reduction(sums: QuestionSums) -> float:
    return float(1 - sums.of("tokens").sum() / sums.full_tokens.sum())


def drop(sums: QuestionSums) -> float:
    return float(share_of(sums, "lost")[0] - share_of(sums, "gained")[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="sets whose name begins so")
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS, help="largest EM drops, fractions")
    asked = parser.parse_args()
    folder = os.environ.get("SUFFICE_TRACES")
    if not folder or not any(cases(Path(folder))):
        print("dev_sets: set SUFFICE_TRACES to a folder with files named SET.dev.parquet", file=sys.stderr)
        return 2
    print("Saved: token reduction. Drops and targets in points of EM; ours ≥ frozen: to a twentieth of a point.")
    for case in cases(Path(folder)):
        if asked.only and not case.file.startswith(tuple(asked.only)):
            continue
        try:
            (data,) = survey([Path(folder) / case.file], where=case.where, min_run_em=case.min_run_em)
            show(data, case.name, asked.targets)
        except SufficeError as error:
            print(f"dev_sets: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
