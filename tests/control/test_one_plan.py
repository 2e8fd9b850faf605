"""One plan: on the same rows the loop of a live route and a replay of them come to the same levels, look by look."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from suffice.arrays import Floats
from suffice.assurance.certify import Windows
from suffice.certification.certificate import PendingAudits
from suffice.certification.certifier import Certifier
from suffice.certification.evidence import CertifierDecision, Evidence
from suffice.control.evidence.audits import Audit, Verdicts, audits_to_rows, rows_in_all_orders
from suffice.control.evidence.cold_start import live_plan
from suffice.control.evidence.versions import LiveLearner, fit_audited_version
from suffice.learn.audits import AuditRuns
from suffice.replay.online.stream import RecordedTraffic, run_stream
from suffice.types import Alarm, Episode
from tests.control.made import CONTROL, ROUTE, Story, began, learned, rows, run, story

N = 2_400
TICK = CONTROL.tick_requests


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Look:
    """What is in force behind one look."""

    at: int
    level: int
    share: float  # of the next requests to audit
    thresholds: Floats  # of the version, (folds, levels); (0, 0): there is none
    log_e: Floats

    def __eq__(self, other: object) -> bool:
        """To the last bit."""
        return (
            isinstance(other, Look)
            and (self.at, self.level, self.share) == (other.at, other.level, other.share)
            and np.array_equal(self.log_e, other.log_e)
            and np.array_equal(self.thresholds, other.thresholds)
        )


def look(certifier: Certifier, at: int) -> Look:
    served = certifier.served
    return Look(
        at=at,
        level=certifier.level,
        share=certifier.share,
        log_e=certifier.epoch.log_e.copy(),
        thresholds=np.zeros((0, 0)) if served is None else served.levels.copy(),
    )


@dataclass
class Lived:
    """What the live loop did, and the runs that it was shown or would have been."""

    history: Story
    looks: list[Look] = field(default_factory=list)
    runs: list[Audit] = field(default_factory=list)  # of all requests, as if each were an audit


def lived(seed: int, *, worse_from: int = N) -> Lived:
    """A cold start and what follows: each request ends before the next begins, and is drawn at the share in force.

    worse_from  number of the request from which on every question is hard
    """
    rng, draws = random.Random(seed), np.random.default_rng(seed)
    here = Lived(story(ROUTE))
    seq = 1
    for begin in range(0, N, TICK):
        share = here.history.loop.certifier.share
        for number, drawn in enumerate((draws.random(TICK) < share).tolist(), begin):
            hard = number >= worse_from
            request, outcome = run(
                number,
                rng,
                sure=False if hard else None,
                p_right=0.4 if hard else 0.9,
                audit=drawn,
                propensity=share if drawn else 1 - share,
            )
            here.history.feed(rows([request], first=seq))
            if (number + 1) % TICK == 0:
                here.looks.append(look(here.history.loop.certifier, number + 1))
            here.history.feed(rows([outcome], first=seq + 1))
            whole = Episode(request=replace(request, audit=True, propensity=1.0), outcome=outcome)
            here.runs.append(Audit(seq=seq + 1, at=number + 1, ended_at_s=0.0, episode=whole))
            seq += 2
    return here


class CountedFromOne(Certifier):
    """A keeper whose requests have the numbers that the log gives them, the first of which is 1."""

    def look(self, evidence: Evidence) -> CertifierDecision:
        pending = PendingAudits(at=evidence.pending.at + 1, share=evidence.pending.share)
        return Certifier.look(self, replace(evidence, pending=pending))


def replayed(here: Lived, seed: int) -> tuple[list[Look], list[float]]:
    """The same runs through the replay: its looks, and when it raised alarms."""
    loop, epoch = here.history.loop, began(ROUTE).epoch
    assert epoch is not None
    chosen = learned(loop).chosen
    assert chosen is not None

    def rows_of(audits: Sequence[Audit], counts: Verdicts) -> AuditRuns:
        return audits_to_rows(audits, chosen=chosen, match=loop.context.match, wave=ROUTE.wave, counts=counts)

    runs = rows_in_all_orders(here.runs, {}, rows_of)
    assert runs is not None
    plan = replace(live_plan(ROUTE, CONTROL, epoch), watches_signals=False)  # signals are another reading of each
    certifier = CountedFromOne(plan, LiveLearner(chosen), fit=fit_audited_version, first=1.0, earlier=Windows())
    traffic = RecordedTraffic(
        runs=runs,
        probes=np.zeros(len(runs.x)),
        early=np.zeros((N, 1)),
        question=tuple(map(str, range(N))),
        chosen=chosen,
        duration=np.ones(N),
    )
    looks: list[Look] = []
    stream = run_stream(
        traffic,
        certifier,
        np.random.default_rng(seed),
        period=TICK,
        watch=lambda one: looks.append(look(one, int(one.now))),
    )
    return looks, [change.at for change in stream.changes if change.kind == "alarm"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_replay_comes_to_the_levels_and_thresholds_of_the_live_loop_at_every_look(seed: int) -> None:
    here = lived(seed)
    looks, alarms = replayed(here, seed)
    assert looks == here.looks
    assert len(looks) == N // TICK
    assert alarms == []
    published = {made.at: made.level for made in here.history.published}
    assert published == {one.at: one.level for one in looks if one.at in published}, "and says so"
    assert len(published) > 2, "there was something to say"
    assert max(one.level for one in looks) > 0
    assert {one.share for one in looks} >= {1.0, 0.05}


@pytest.mark.slow
def test_both_raise_their_alarm_at_the_same_request() -> None:
    here = lived(3, worse_from=1_000)
    looks, alarms = replayed(here, 3)
    raised = [event.at for event in here.history.decided if isinstance(event, Alarm)]
    assert raised
    assert raised[0] == alarms[0] > 1_000
    until = [one for one in looks if one.at < raised[0]]
    assert until == here.looks[: len(until)]
