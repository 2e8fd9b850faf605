"""What counts as a loss: a killed gateway, time-outs of full runs, a class held in full.

Each row is a route of the control loop whose truth is known, fed through its log; the certificate, the alarms and the
measured EM drop stand beside the truth. A gateway that dies over HTTP writes the same rows (`Writer.recover`).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np
from tests.control.made import CONTROL, ROUTE, Story, label, rows, run, story

from suffice.assurance.estimate import em_drop_of
from suffice.assurance.runs import Tally, measure_run
from suffice.review.holds import Override
from suffice.settings import Control
from suffice.store.database.views import EpisodeWithLabels
from suffice.store.rows.events import Event
from suffice.types import Alarm, EndReason, Episode, Outcome, Query, Request

BUDGET: Final = 0.1
PLAIN: Final = msgspec.structs.replace(ROUTE, max_em_drop=BUDGET, audit_share=1.0, agent="off")  # all are audits
CALM: Final = msgspec.structs.replace(CONTROL, refit_requests=5_000)
OPEN: Final = 200  # audits that are open when the gateway dies, and at any time before
BEFORE: Final = 900


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    truth: str
    said: str
    holds: bool


def fed(events: Iterable[Event], control: Control = CALM) -> Story:
    return story(PLAIN, control=control).feed(rows(events)).settle()


def overlapping(runs: Sequence[tuple[Request, Outcome]]) -> list[Event]:
    """Runs that each take as long as OPEN others need to begin; the last stay open."""
    log = list[Event]()
    for number, (request, _) in enumerate(runs):
        log.append(request)
        if number >= OPEN:
            log.append(runs[number - OPEN][1])
    return log


def without_answer(outcome: Outcome, end: EndReason) -> Outcome:
    return replace(outcome, end_reason=end, answer=None, steps=(), usage=None)


def killed(seed: int) -> Row:
    """The drop is 0: all samples of a vote agree."""
    rng = random.Random(seed)
    pairs = [run(number, rng, sure=True) for number in range(BEFORE)]
    died = [without_answer(outcome, "lost") for _, outcome in pairs[-OPEN:]]
    later = [run(number, rng, sure=True) for number in range(BEFORE, BEFORE + 600)]
    told = fed([*overlapping(pairs), *died, *overlapping(later)], CONTROL)  # the first audits end after the burst
    since = [made.level for made in told.published if made.at >= BEFORE - OPEN]
    alarms = sum(isinstance(event, Alarm) for event in told.decided)
    lowest = min([told.loop.level, *since])
    said = f"lowest level since {lowest}, {alarms} alarms"
    return Row(name=f"killed with {OPEN} open audits", truth="drop 0.0", said=said, holds=lowest > 0 and not alarms)


def poisoned(seed: int) -> Row:
    """A third of the requests lose at every level, and each of them ends its gateway."""
    rng, log = random.Random(seed), list[Event]()
    for number in range(1_200):
        hard = number % 12 >= 8
        request, outcome = run(number, rng, sure=not hard, p_right=0.3)
        log += [request, without_answer(outcome, "lost") if hard else outcome]
    top = max((made.level for made in fed(log).published), default=0)
    return Row(name="a client that kills", truth="drop above 10", said=f"highest level {top}", holds=top == 0)


def timeouts(seed: int) -> Row:
    """One full run in fifteen ends by a time-out; nothing is stopped, and no stop loses."""
    rng, log = random.Random(seed), list[Event]()
    for number in range(BEFORE):
        request, outcome = run(number, rng, sure=True)
        silent = rng.random() < 581 / 9_000
        log += [request, without_answer(outcome, "timeout") if silent else outcome]
    told = fed(log)
    measured = measured_drop(log)
    said = f"level {told.loop.level}, measured drop {100 * measured:+.1f}"
    return Row(name="time-outs of full runs", truth="drop 0.0", said=said, holds=told.loop.level > 0 and not measured)


def measured_drop(log: Sequence[Event]) -> float:
    """As `status` prints it."""
    requests, tally = {event.episode_id: event for event in log if isinstance(event, Request)}, Tally()
    for seq, event in enumerate(log):
        if isinstance(event, Outcome):
            request = requests[event.episode_id]
            item = EpisodeWithLabels(seq=seq, episode=Episode(request=request, outcome=event), labels=())
            tally.add(request, event, measure_run(item, lambda answer, gold: answer == gold))
    found = em_drop_of(tally)
    return 0.0 if found is None else found.value


def held_in_full(seed: int) -> Row:
    """Law loses by a stop and maths gains; a person holds maths in full, and the others are served at the level."""
    log = by_class(seed, BEFORE)
    override = Override(
        route="r",
        number=1,
        kind="observe",
        reason="a complaint",
        author="ann",
        set_at_s=0.0,
        expires_at_s=1e9,
        query_class="maths",
    )
    before, after = fed(log), fed([*log, override, *by_class(seed + 1, 100, first=BEFORE)])
    pooled, mixed = drop_of(before, before.loop.level), drop_of(after, after.loop.level, full="maths")
    unproved = drop_of(before, before.loop.level, full="maths")
    said = f"pooled {100 * pooled:+.1f} at level {before.loop.level}; served {100 * mixed:+.1f} at {after.loop.level}"
    truth = f"{100 * unproved:+.1f} at the pooled level"
    return Row(name="a class held in full", truth=truth, said=said, holds=max(pooled, mixed) < BUDGET)


def by_class(seed: int, n: int, *, first: int = 0) -> list[Event]:
    rng, log = random.Random(seed), list[Event]()
    for number in range(first, first + n):
        name, turns = ("maths", 0.6) if number % 4 == 0 else ("law", 0.17)
        request, outcome = run(number, rng, sure=True, query=Query(query_class=name))
        log += [request, outcome]
        if rng.random() < turns:
            answers = ["11"] * 3 + ["77"] * 5
            steps = tuple(replace(step, answer=own) for step, own in zip(outcome.steps, answers, strict=True))
            log[-1] = replace(outcome, steps=steps, answer="77")
            log.append(label(number, gold="77" if name == "law" else "11"))
    return log


def drop_of(told: Story, level: int, *, full: str = "") -> float:
    """The EM drop of all requests at a level, all of which are audits, with one class in full."""
    outcomes = told.loop.certifier.outcomes()
    assert outcomes is not None
    z = outcomes[1][:, level]
    names = np.array([audit.query_class for audit in told.loop.state.audits[: len(z)]])
    return float(np.where(names == full, 0, z).mean())


WORLDS: Final[Sequence[Callable[[int], Row]]] = (killed, poisoned, timeouts, held_in_full)


def main() -> int:
    """Print a row for each world and seed; return 1 if one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of each world")
    found = [world(seed) for world in WORLDS for seed in range(parser.parse_args().seeds)]
    for row in found:
        print(f"{'ok' if row.holds else 'MISSED':7} {row.name:28} truth: {row.truth:26} {row.said}")
    return int(not all(row.holds for row in found))


if __name__ == "__main__":
    sys.exit(main())
