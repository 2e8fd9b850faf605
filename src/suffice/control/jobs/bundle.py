"""What one certificate rests on, rebuilt from the log, for somebody who checks it without the log.

    log ──▶ RouteLoop, replayed to the publication ──▶ Bundle: header, and every request of the window in start order

The loop is the one that published. It reproduces each publication on the way, so the state at the one in question is
the state that decided. Each row names its place in the log and carries a digest of it; no answer and no prompt leaves
the log. `tools/verify_bundle.py` reads what this file writes, and shares no code with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import Final

import msgspec
import numpy as np

from suffice.assurance.certify import BETS
from suffice.assurance.runs import Match
from suffice.control.evidence.audits import NO_ANSWER_ENDS, Audit, is_audit
from suffice.control.evidence.versions import ServedVersion, read_back
from suffice.control.jobs.certify import loop_of
from suffice.control.loop.epoch import ReplayMismatch, RouteContext
from suffice.control.loop.learned import LearnedEvidence
from suffice.control.loop.route_loop import RouteLoop
from suffice.errors import ConfigError, StoreError
from suffice.learn.audits import Bools, Small
from suffice.learn.certifier import Certificate
from suffice.settings import Settings
from suffice.store.audit.chain import ExtractRow, Line, find_outcome_row, read_decisions, read_starts
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import LogReader, decoded, read_events
from suffice.store.routes.in_force import InForce
from suffice.store.rows.records import RequestCount
from suffice.types import Epoch, Feedback, Outcome, Publication, Request

FORM: Final = 1  # of the lines; other lines get another number


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    header: Line
    requests: Sequence[Line]  # of the window, in the order in which they began
    rows: frozenset[int]  # places in the log of chained rows: the epoch, the publication, labels that count


def evidence_of(
    connection: LogReader, name: str, settings: Settings, match: Match, number: int | None = None
) -> Bundle:
    """Rebuild what a publication of a route rests on.

    number  of the publication; None: the latest one

    Raises ConfigError where there is nothing to rebuild, and StoreError where the log does not lead to it any more.
    """
    (epoch_seq, epoch), (made_seq, made) = _decided(connection, name, number)
    held = InForce(epoch=epoch, n_epochs=epoch.number)

    def load(address: str) -> ServedVersion:
        return read_back(address, read_artefact(connection, address))

    route, control = settings.routes[name], settings.control
    context = RouteContext(name=name, route=route, control=control, match=match, load=load, author="check")
    loop = loop_of(context, held, connection)
    if not isinstance(loop.source, LearnedEvidence):
        raise ConfigError(f"route {name}: its effort or budget is certified on pairs of calls, which no bundle holds")
    try:
        for stored in read_events(connection, since_seq=epoch.since_seq):
            loop.feed(stored)
            if loop.held.publication is not None and loop.held.publication.number == made.number:
                break
            if stored.seq >= made_seq:
                raise ReplayMismatch(f"publication {made.number} does not follow from the log")
    except ReplayMismatch as error:
        raise StoreError(f"route {name}: cannot be rebuilt: {error} (with the settings as they are now)") from None
    if loop.certifier.certificate is None:
        raise ConfigError(f"route {name}: publication {made.number} rests on no audits")
    view = _View(loop, loop.source, loop.certifier.certificate)
    requests = list(view.requests(connection))
    labels = {line["label"] for line in requests if "label" in line}
    return Bundle(header=view.header(made), requests=requests, rows=frozenset({epoch_seq, made_seq, *labels}))


def _decided(connection: LogReader, name: str, number: int | None) -> tuple[tuple[int, Epoch], tuple[int, Publication]]:
    """A publication and its epoch, each with its place in the log. Raises ConfigError and StoreError."""
    epochs, made = dict[int, tuple[int, Epoch]](), dict[int, tuple[int, Publication]]()
    for seq, kind, body in read_decisions(connection, name):
        if kind == "epoch_began":
            epoch = decoded(seq, Epoch, body)
            epochs.setdefault(epoch.number, (seq, epoch))
        else:
            publication = decoded(seq, Publication, body)
            made.setdefault(publication.number, (seq, publication))
    wanted = max(made, default=0) if number is None else number
    if wanted not in made:
        which = "none yet" if not made else f"1 to {max(made)}, got {wanted}"
        raise ConfigError(f"route {name}: publications: {which}")
    if made[wanted][1].epoch not in epochs:
        raise StoreError(f"route {name}: epoch {made[wanted][1].epoch} is not in the log")
    return epochs[made[wanted][1].epoch], made[wanted]


class _View:
    """A loop that has just published, as lines of a bundle."""

    def __init__(self, loop: RouteLoop, source: LearnedEvidence, certificate: Certificate) -> None:
        self._loop, self._source, self._certificate = loop, source, certificate
        self._pending = frozenset(loop.certifier.pending.at.tolist())
        self._audits: dict[str, tuple[Audit, Small, Bools, bool, bool]] = {}
        counted = loop.certifier.counted_audits()
        if counted is None:
            return
        runs, differs = counted
        places = np.flatnonzero(certificate.inside).tolist()
        for row, place in enumerate(places):
            audit = loop.state.audits[place]
            labelled = bool(runs.label_at[row] <= loop.certifier.now)
            self._audits[audit.id] = audit, certificate.z[row], differs[row], bool(runs.abandoned[row]), labelled

    # ---- the header ------------------------------------------------------------------------------

    def header(self, made: Publication) -> Line:
        """What the certificate claims, and on which numbers."""
        loop, found, epoch = self._loop, self._certificate, self._loop.state.epoch
        window, plan = found.window, loop.certifier.plan
        return {
            "type": "header",
            "form": FORM,
            "route": loop.context.name,
            "kind": loop.context.route.kind,
            "scorer": msgspec.to_builtins(loop.context.route.scorer),
            "observed_are_audits": loop.context.route.probe is None,
            "epoch": epoch.number,
            "publication": made.number,
            "at": made.at,
            "fit": made.fit,
            "level": made.level,
            "certified_level": found.level,
            "n_levels": len(found.log_e),
            "promise": {
                "max_em_drop": epoch.max_em_drop,
                "confidence": epoch.confidence,
                "delta_share": epoch.delta_share,
                "delta": plan.delta,
            },
            "charges": self._charges(),
            "bets": list(BETS),
            "window": None
            if window is None
            else {
                "start": window.start,
                "end": None if window.end == inf else window.end,
                "share": window.share,
                "until": found.until,
            },
            "log_wealth": [round(one, 9) for one in found.log_e.tolist()],
        }

    def _charges(self) -> Line:
        """What is taken off the budget: the finish by runs of levels, from the first one on, and a judge's mistakes."""
        finish, judge = self._source.finish, self._source.judge
        steps = list[Line]()
        for level in range(1, len(self._certificate.log_e)):
            bound = finish.at(level)
            if not finish.is_needed or (bound is None and steps and steps[-1]["n"] == 0):
                continue
            n, n_differing, upper = (0, 0, 2.0) if bound is None else (bound.n, bound.n_differing, bound.upper)
            step = {"n": n, "n_differing": n_differing, "upper": upper}
            if not steps or steps[-1] != {"from_level": steps[-1]["from_level"], **step}:
                steps.append({"from_level": level, **step})
        graded, wrong, alone, n_audits = judge.counts
        counts = {"n_graded": graded, "n_wrong": wrong, "n_alone": alone, "n_audits": n_audits}
        return {"finish": steps, "judge": {"charge": judge.charge, **counts}}

    # ---- requests --------------------------------------------------------------------------------

    def requests(self, connection: LogReader) -> Iterator[Line]:
        """Every request of the window, in the order of start."""
        window, until = self._certificate.window, self._certificate.until
        if window is None:
            return
        first, behind, last = ceil(window.start), min(window.end, floor(until) + 1), self._loop.n
        lines = list[Line]()
        for entry in read_starts(connection, self._loop.context.name, self._loop.seq):
            if last < first:
                break
            if entry.kind == "requests_counted":
                counted = decoded(entry.seq, RequestCount, entry.body)
                last, low, high = last - counted.n_governed, last - counted.n_governed + 1, last
                low, high = max(low, first), min(high, ceil(behind) - 1)
                if low <= high:
                    lines.append(
                        {
                            "type": "unrecorded",
                            "n": low,
                            "count": high - low + 1,
                            "audit_share": counted.audit_share,
                            "seq": entry.seq,
                            "digest": entry.digest,
                        }
                    )
                continue
            request = decoded(entry.seq, Request, entry.body)
            if request.ungoverned is None:
                if last < behind:
                    lines.append(self._request(connection, last, entry, request))
                last -= 1
        yield from reversed(lines)

    def _request(self, connection: LogReader, number: int, entry: ExtractRow, request: Request) -> Line:
        line: Line = {
            "type": "request",
            "n": number,
            "id": request.episode_id,
            "seq": entry.seq,
            "digest": entry.digest,
            "audit": request.audit,
            "p": request.propensity,
        }
        whole = request.mode != "enforce" or bool(request.arms)
        told = {
            "mode": (request.mode, "enforce"),
            "delivery": (request.delivery, 1),
            "kept_by": (request.kept_by, ""),
            "keep_rate": (1.0 if whole else request.keep_rate, 1.0),
            "unit": (bool(request.unit), True),
        }
        line |= {name: value for name, (value, usual) in told.items() if value != usual}
        # An audit that was given up at a change of promise counts as lost, whatever it came to later.
        given_up = number in {n for n, _ in self._loop.state.epoch.pending}
        ended = None if given_up else find_outcome_row(connection, request.episode_id, self._loop.seq)
        outcome = None
        if ended is not None:
            outcome = decoded(ended.seq, Outcome, ended.body)
            line |= {"end_seq": ended.seq, "end_digest": ended.digest}
        if is_audit(request, probes=self._loop.context.route.probe is not None):
            line |= self._audit(number, request, outcome)
        return line

    def _audit(self, number: int, request: Request, outcome: Outcome | None) -> Line:
        if outcome is None:
            if number in self._pending:
                return {"status": "pending"}
            return {"status": "left out", "why": "nobody waits for its end"}
        if outcome.end_reason in NO_ANSWER_ENDS:
            return {"status": "no answer", "why": outcome.end_reason}
        if request.episode_id not in self._audits:
            return {"status": "left out", "why": "the loop does not have it any more"}
        audit, z, differs, is_lost, labelled = self._audits[request.episode_id]
        if is_lost:
            return {"status": "lost", "why": outcome.end_reason, "z": _runs(z.tolist())}
        line: Line = {"status": "returned", "d": _runs(differs.astype(int).tolist()), "z": _runs(z.tolist())}
        return line | (self._label(audit) if labelled and differs.any() else {})

    def _label(self, audit: Audit) -> Line:
        """The label that counts, by its place in the log, and whether the full run is right by it."""
        counts: Feedback = self._source.counts[audit.id]
        seq = next(said.seq for said in reversed(audit.labels) if said.feedback == counts)
        right, answer = counts.correct, audit.episode.outcome.answer
        if right is None and counts.gold is not None:
            right = answer is not None and self._loop.context.match(answer, counts.gold)
        line: Line = {"label": seq, "right": right}
        return line if counts.episode_id is not None else {**line, "response_id": counts.response_id}


def _runs(values: Sequence[int]) -> list[list[int]]:
    """Values by level as (first level, value) of each run of equal ones; what comes before the first is 0."""
    before, found = 0, list[list[int]]()
    for level, value in enumerate(values):
        if value != before:
            found.append([level, value])
            before = value
    return found
