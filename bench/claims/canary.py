"""What a rollout keeps and costs: harmless and harmful versions on simulated traffic.

    python -m bench.claims.canary [--seeds 100] [--jobs 2] [--only WORD ...] [--set audit_share=0.5 ...]

Each cell is one rollout from its first request to its end, by the live code (`rollout.stages`), evaluated every 50
requests, one request per second. Full runs are correct for 60 to 80 % of five classes of questions. A harmless version
changes 2 % of the answers and gains half of them. Each harmful one does its harm and nothing else.
"""

from __future__ import annotations

import argparse
import time
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import msgspec
import numpy as np

from suffice.executor import build_executor
from suffice.rollout.assign import assign_audit
from suffice.rollout.evidence import RolloutEvidence, Rules, UnitRun
from suffice.rollout.stages import State, StepOrder, Transition, advance, place, promote_rollout, start_rollout

EVERY = 50  # requests between two looks
ROUTE_AUDITS = 0.05  # where the rollout asks for no more
CLASSES = ("algebra", "geometry", "history", "law", "physics")
EM = dict(zip(CLASSES, (0.80, 0.75, 0.70, 0.65, 0.60), strict=True))
HEAD = (
    "| version | promoted | rolled back | inconclusive | ended after, requests: median / p90 |"
    " of them in shadow, median | audits, median | units served by it, median |"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What live runs of a version are like."""

    median_s: float = 8.0
    errors: float = 0.01
    no_answer: float = 0.01
    satisfaction: float = 0.80
    kept: float = 0.6  # of the full run's tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A version against the one in force, with everything known."""

    says: str
    lost: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0.01))  # of answers, by class
    gained: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0.01))
    shares: tuple[float, ...] = (0.2,) * 5
    candidate: Arm = Arm(kept=0.55)
    control: Arm = Arm()
    rated: float = 0.2  # share of live runs that somebody rates
    late: int = 0  # requests until the label of a changed answer comes
    uneven: float = 0.0  # part of the candidate's units that never arrive: a broken split
    skipped: bool = False  # has a person taken it past the shadow?
    cold: float = 1.0  # how much slower the candidate is in the first 100 requests of a step


def _in_one(class_: str, more: float, base: float = 0.01) -> dict[str, float]:
    return dict.fromkeys(CLASSES, base) | {class_: base + more}


ALIKE = Arm(kept=0.55)
WORLDS: dict[str, World] = {
    "harmless": World(says="2 % of answers differ, half of them gained"),
    "the same answers": World(
        says="no answer differs", lost=dict.fromkeys(CLASSES, 0.0), gained=dict.fromkeys(CLASSES, 0.0)
    ),
    "harmless, late labels": World(says="… each label after 500 requests", late=500),
    "harmless, cold": World(says="… three times slower while a step warms up", cold=3.0),
    "harmless, 40/30/15/10/5": World(says="… classes of unequal size", shares=(0.4, 0.3, 0.15, 0.10, 0.05)),
    "one class of five": World(says="5 EM points in one class of five", lost=_in_one("law", 0.05)),
    "one class, 40/30/15/10/5": World(
        says="5 EM points in a class of 15 %", lost=_in_one("history", 0.05), shares=(0.4, 0.3, 0.15, 0.10, 0.05)
    ),
    "one class, late labels": World(says="… each label after 500 requests", lost=_in_one("law", 0.05), late=500),
    "one class, shadow skipped": World(
        says="… taken straight into the canary by a person", lost=_in_one("law", 0.05), skipped=True
    ),
    "at the margin": World(
        says="3 EM points in one class of five: it must not be proved to lose less", lost=_in_one("law", 0.03)
    ),
    "everywhere": World(says="2 EM points in every class", lost=dict.fromkeys(CLASSES, 0.03)),
    "latency": World(says="half as slow again", candidate=replace(ALIKE, median_s=12.0)),
    "errors": World(says="6 % errors, 1 % before", candidate=replace(ALIKE, errors=0.06)),
    "no answers": World(says="6 % without an answer, 1 % before", candidate=replace(ALIKE, no_answer=0.06)),
    "satisfaction": World(says="0.60, 0.80 before", candidate=replace(ALIKE, satisfaction=0.60)),
    "stops everything": World(
        says="keeps 2 % of the tokens, loses what it can", lost=dict(EM), candidate=replace(ALIKE, kept=0.02)
    ),
    "stops a lot, harmless": World(
        says="cuts five sixths of the tokens at once, loses nothing", candidate=replace(ALIKE, kept=0.10)
    ),
    "broken split": World(says="one in four of its own units is lost on the way", uneven=0.25),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How one rollout went."""

    stage: str  # it ended in: full, rolled_back; paused: a person was called; running: it did not end
    before: str  # the stage before that
    reason: str
    n: int  # requests until then
    n_shadow: int  # of them in shadow
    n_audits: int
    n_served: int  # live requests that the candidate has answered
    fewest: int  # audits of the class with the fewest, when the first unit was served; -1: none was


class Life:
    """One rollout, request by request."""

    def __init__(self, world: World, rules: Rules, seed: int, *, most: int = 60_000, fit: str = "") -> None:
        self.world, self.rules, self.most = world, rules, most
        self.rng = np.random.default_rng([seed, 6])
        self.salt = f"seed-{seed}"
        self.n_shadow = self.n_served = 0
        self.fewest, self.before, self.reason = -1, "shadow", ""
        self.evidence = RolloutEvidence()
        self.state: State = start_rollout(
            "r1",
            route="sums",
            candidate="pv-new",
            active="pv-old",
            follows=0,
            at=0,
            now_s=0.0,
            rules=rules,
            fit=fit,
        )
        if world.skipped:
            self.state = self.state.after(
                promote_rollout(self.state, rules, StepOrder(by="ann", reason="urgent", at=0, now_s=0.0))
            )
            self.before = "canary"
        self.labels: list[tuple[int, str, int]] = []  # (due, class, z)
        self.came = dict.fromkeys(CLASSES, 0)  # requests since the last look
        self.edges = list(accumulate(world.shares))[:-1]

    def run(self) -> Ended:
        at = 0
        while at < self.most and not self.state.over and not self.state.paused:
            self.request(at)
            at += 1
            if at % EVERY == 0:
                self.look(at)
        stage = "paused" if self.state.paused else self.state.stage if self.state.over else "running"
        return Ended(
            stage=stage,
            before=self.before,
            reason=self.reason,
            n=at,
            n_shadow=self.n_shadow,
            n_audits=self.evidence.n_audits,
            n_served=self.n_served,
            fewest=self.fewest,
        )

    def look(self, at: int) -> None:
        for name, n in self.came.items():
            self.evidence = self.evidence.with_request(name, n)
        self.came = dict.fromkeys(CLASSES, 0)
        due = [one for one in self.labels if one[0] <= at]
        self.labels = [one for one in self.labels if one[0] > at]
        for _, name, z in due:
            self.evidence = self.evidence.with_label(name, z)  # type: ignore[arg-type]
        for move in self.moves(at):
            self.move(move)

    def moves(self, at: int) -> Sequence[Transition]:
        """What follows from the evidence."""
        move = advance(self.state, self.evidence, self.rules, at=at, now_s=float(at))
        return () if move is None else (move,)

    def move(self, move: Transition) -> None:
        before, self.state = self.state, self.state.after(move)
        if move.move == "certify":  # no step
            return
        self.before, self.reason = before.stage, move.reason
        if self.state.stage == "canary" and self.fewest < 0:
            self.fewest = min(one.n for one in self.evidence.audits.values())

    def class_of(self, at: int) -> str:  # noqa: ARG002 - where traffic is recorded it says
        """The class of a request."""
        return CLASSES[bisect_right(self.edges, self.rng.random())]

    def audit_share(self) -> float:
        """Of requests that run in full, whatever anybody could do with them."""
        return ROUTE_AUDITS if self.state.audit_share is None else self.state.audit_share

    def request(self, at: int) -> None:
        world, state, rng = self.world, self.state, self.rng
        name = self.class_of(at)
        self.came[name] += 1
        self.n_shadow += state.stage == "shadow"
        unit = f"unit-{at}"
        if assign_audit(unit, share=self.audit_share(), salt=self.salt, at_s=0.0).audit:
            self.audit(at, name)
            return
        arm = place(state, unit, salt=self.salt).arm
        if arm == "candidate":
            self.served()
        if arm is None or not state.counts(at, float(at), self.rules):
            return
        if arm == "candidate" and rng.random() < world.uneven:
            return
        own = world.candidate if arm == "candidate" else world.control
        warm = at - state.since_at >= 100 or arm == "control"
        seconds = own.median_s * float(np.exp(rng.normal(0.0, 0.6))) * (1.0 if warm else world.cold)
        run = UnitRun(
            query_class=name, seconds=seconds, error=rng.random() < own.errors, no_answer=rng.random() < own.no_answer
        )
        self.evidence = self.evidence.with_run(arm, run, self.rules)
        if rng.random() < world.rated:
            # Ratings from 1 to 5, as a mean of five coins has them.
            self.evidence = self.evidence.with_rating(arm, rng.binomial(4, own.satisfaction) / 4)

    def served(self) -> None:
        """A live request is answered by the candidate."""
        self.n_served += 1

    def audit(self, at: int, name: str) -> None:
        world, u = self.world, self.rng.random()
        lost, gained = world.lost[name], world.gained[name]
        z = 1 if u < lost else -1 if u < lost + gained else 0
        full = 1_000.0 * float(np.exp(self.rng.normal(0.0, 0.5)))
        waits = z != 0 and world.late > 0
        if waits:
            self.labels.append((at + world.late, name, z))
        self.evidence = self.evidence.with_audit(
            name,
            None if waits else z,  # type: ignore[arg-type]
            full=full,
            active=world.control.kept * full,
            candidate=world.candidate.kept * full,
        )


def roll_out(name: str, seed: int, rules: Rules | None = None, *, most: int = 60_000) -> Ended:
    """One rollout of one version: its end."""
    return Life(WORLDS[name], rules or Rules(), seed, most=most).run()


def row(name: str, found: Sequence[Ended]) -> str:
    """One line of the table."""
    return f"| {' | '.join([f'{name}: {WORLDS[name].says}', *cells(found)])} |"


def cells(found: Sequence[Ended]) -> list[str]:
    """What a line says behind its name."""
    n = len(found)
    inconclusive = sum(one.reason.startswith("inconclusive") for one in found)
    back = sum(one.stage == "rolled_back" for one in found) - inconclusive
    paused = sum(one.stage == "paused" for one in found)
    ends = np.quantile([one.n for one in found], [0.5, 0.9])
    shadow, audits, served = (
        np.median([getattr(one, what) for one in found]) for what in ("n_shadow", "n_audits", "n_served")
    )
    in_shadow = sum(
        one.stage == "rolled_back" and one.before == "shadow" and not one.reason.startswith("inconclusive")
        for one in found
    )
    return [
        f"{100 * sum(one.stage == 'full' for one in found) / n:.0f} %",
        f"{100 * back / n:.0f} %"
        + (f", {100 * in_shadow / n:.0f} % in shadow" if in_shadow else "")
        + (f"; paused {100 * paused / n:.0f} %" if paused else ""),
        f"{100 * inconclusive / n:.0f} %",
        f"{ends[0]:,.0f} / {ends[1]:,.0f}",
        f"{shadow:,.0f}",
        f"{audits:,.0f}",
        f"{served:,.0f}",
    ]


def rules_of(changes: Sequence[str]) -> Rules:
    """The default rules with some changed, each written as name=number."""
    made = Rules()
    known = msgspec.structs.asdict(made)
    for change in changes:
        name, _, value = change.partition("=")
        if name not in known or isinstance(known[name], tuple):
            raise SystemExit(f"--set: got {change!r}; a number for one of {', '.join(sorted(known))}")
        made = msgspec.structs.replace(made, **{name: type(known[name])(float(value))})
    return made


def chosen(words: Sequence[str], names: Collection[str] = WORLDS) -> list[str]:
    """The versions that are meant: a whole name is that one, a part of a name all that have it; all without a word."""
    unknown = [word for word in words if not any(word in name for name in names)]
    if unknown:
        raise SystemExit(f"--only: nothing is named {', '.join(unknown)}; there are {', '.join(names)}")
    meant = {name for word in words for name in names if (word == name if word in names else word in name)}
    return [name for name in names if name in meant or not words]


def work(cell: tuple[str, int, Rules]) -> tuple[Ended, float]:
    begin_s = time.process_time()
    return roll_out(*cell), time.process_time() - begin_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.claims.canary", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="versions with one of these in the name")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=NUMBER", help="rules that are not the default")
    asked = parser.parse_args()
    rules = rules_of(asked.set)
    cpu_s = 0.0
    print(HEAD, "| --- " * (HEAD.count("|") - 1) + "|", sep="\n")
    pool = build_executor(asked.jobs)
    for name in chosen(asked.only):
        done = list(pool.map(work, [(name, seed, rules) for seed in range(asked.seeds)]))
        cpu_s += sum(taken for _, taken in done)
        print(row(name, [one for one, _ in done]), flush=True)
    print(f"\n{asked.seeds} seeds each, {cpu_s:.0f} s of CPU time")


if __name__ == "__main__":
    main()
