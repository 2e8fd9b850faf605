"""Rebuilds the evidence of one certificate from the log, for verification without the log.

The loop that published is replayed, and reproduces each publication on the way. Each row carries a digest of the logged
row; no answer or prompt is exported. `tools/verify_bundle.py` reads these files and shares no code with this module.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil, floor, inf
from typing import Final

import msgspec
import numpy as np

from suffice.arrays import Bools, Ints, Small
from suffice.assurance.certify import BETS
from suffice.assurance.runs import NO_ANSWER_ENDS, Match, is_audit
from suffice.certification.certificate import Certificate
from suffice.control.evidence.audits import Audit, cluster_names
from suffice.control.evidence.versions import read_back
from suffice.control.jobs.certify import loop_of
from suffice.control.loop.epoch import ReplayMismatch, RouteContext
from suffice.control.loop.learned import LearnedEvidence
from suffice.control.loop.route_loop import RouteLoop
from suffice.errors import ConfigError, StoreError
from suffice.learn.version import ServedVersion
from suffice.settings import Settings
from suffice.store.audit.chain import ExtractRow, Line, find_outcome_row, read_starts
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import LogReader, decoded, locate_event, read_events, read_kinds
from suffice.store.routes.deployments import RouteDeployment, read_decided
from suffice.store.rows.events import RequestCount
from suffice.types import Epoch, Outcome, Publication, Request

FORM: Final = 4  # version of the line format


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    header: Line
    requests: Sequence[Line]  # of the window, in the order in which they began
    rows: frozenset[int]  # positions of chained rows: the epoch, the publication, labels that count


def evidence_of(log: LogReader, name: str, settings: Settings, match: Match, number: int | None = None) -> Bundle:
    """Rebuild the evidence of a publication, by default the latest. Raises ConfigError, and StoreError on mismatch."""
    (epoch_seq, epoch), (made_seq, made) = _decided(log, name, number)

    def load(address: str) -> ServedVersion:
        return read_back(address, read_artefact(log, address))

    route, control = settings.routes[name], settings.control
    context = RouteContext(name=name, route=route, control=control, match=match, load=load, author="check")
    loop = loop_of(context, RouteDeployment(epoch=epoch, n_epochs=epoch.number), log)
    if not isinstance(loop.source, LearnedEvidence):
        raise ConfigError(f"route {name}: its effort or budget is certified on pairs of calls, which no bundle holds")
    try:
        for stored in read_events(log, since_seq=epoch.since_seq):
            loop.feed(stored)
            if loop.held.publication is not None and loop.held.publication.number == made.number:
                break
            if stored.seq >= made_seq:
                raise ReplayMismatch(f"publication {made.number} does not follow from the log")
    except ReplayMismatch as error:
        raise StoreError(f"route {name}: cannot be rebuilt: {error} (with the settings as they are now)") from None
    if loop.certifier.epoch.certificate is None:
        raise ConfigError(f"route {name}: publication {made.number} rests on no audits")
    view = _View(loop, loop.source, loop.certifier.epoch.certificate)
    requests = list(view.requests(log))
    rows = {epoch_seq, made_seq, *(line["label"] for line in requests if "label" in line), *_salts(log, requests)}
    return Bundle(header=view.header(made), requests=requests, rows=frozenset(rows))


def _salts(log: LogReader, requests: Sequence[Line]) -> list[int]:
    """Return the places of the salts by which the requests were drawn, and of one before, which binds them."""
    places = [one.seq for one in read_kinds(log, "salt_published")]
    first = requests[0]["seq"] if requests else 0
    return places[max(0, bisect_left(places, first) - 1) :]


def _decided(log: LogReader, name: str, number: int | None) -> tuple[tuple[int, Epoch], tuple[int, Publication]]:
    last = read_decided(log).of(name).n_publications
    wanted = last if number is None else number
    made = locate_event(log, Publication, f"{name}:{wanted}")
    if made is None:
        which = f"1 to {last}, got {wanted}" if last else "none yet"
        raise ConfigError(f"route {name}: publications: {which}")
    made_seq, _, publication = made
    began = locate_event(log, Epoch, f"{name}:{publication.epoch}")
    if began is None:
        raise StoreError(f"route {name}: epoch {publication.epoch} is not in the log")
    return (began[0], began[2]), (made_seq, publication)


@dataclass(frozen=True, slots=True)
class _CountedAudit:
    audit: Audit
    z: Small  # (M,)
    differs: Bools  # (M,)
    is_lost: bool
    is_labelled: bool
    n_orders: int  # in which it counts
    total: Ints  # (M,): sum of its drops over these orders


class _View:
    def __init__(self, loop: RouteLoop, source: LearnedEvidence, certificate: Certificate) -> None:
        self._loop = loop
        self._source = source
        self._certificate = certificate
        self._pending = frozenset(loop.certifier.latest.pending.at.tolist())
        self._audits: dict[str, _CountedAudit] = {}
        epoch = loop.certifier.epoch
        counted = epoch.counted_audits()
        if counted is None:
            return
        runs, differs = counted
        n_orders = epoch.n_orders if certificate.in_all_orders else np.ones(epoch.n_audits, np.int64)
        for row, place in enumerate(np.flatnonzero(certificate.inside).tolist()):
            audit, labelled = loop.state.audits[place], bool(runs.label_at[row] <= loop.certifier.now)
            n = int(n_orders[place])
            total = np.rint(certificate.counted[row] * n).astype(np.int64)
            self._audits[audit.id] = _CountedAudit(
                audit, certificate.z[row], differs[row], bool(runs.abandoned[row]), labelled, n, total
            )

    def header(self, made: Publication) -> Line:
        context = self._loop.context
        certificate = self._certificate
        epoch = self._loop.state.epoch
        window, span = certificate.window, None
        if window is not None:
            end = None if window.end == inf else window.end
            span = {"start": window.start, "end": end, "share": window.share, "until": certificate.until}
        return {
            "type": "header",
            "form": FORM,
            "route": context.name,
            "kind": context.route.kind,
            "scorer": msgspec.to_builtins(context.route.scorer),
            "observed_are_audits": context.route.probe is None,
            "epoch": epoch.number,
            "publication": made.number,
            "at": made.at,
            "fit": made.fit,
            "level": made.level,
            "certified_level": certificate.level,
            "n_levels": len(certificate.log_e),
            "promise": {
                "max_em_drop": epoch.max_em_drop,
                "confidence": epoch.confidence,
                "delta_share": epoch.delta_share,
                "delta": self._loop.certifier.plan.delta,
            },
            "charges": self._charges(),
            "bets": list(BETS),
            "window": span,
            "log_wealth": [round(one, 9) for one in certificate.log_e.tolist()],
        }

    def _charges(self) -> Line:
        """The charges to the budget, run-length encoded by level: for finishing answers, and for a judge's errors."""
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
        names = ("n_graded", "n_wrong", "n_alone", "n_audits")
        counts = dict(zip(names, judge.counts, strict=True))
        return {"finish": steps, "judge": {"charge": judge.charge, **counts}}

    def requests(self, log: LogReader) -> Iterator[Line]:
        window, until = self._certificate.window, self._certificate.until
        if window is None:
            return
        first = ceil(window.start)
        behind = min(window.end, floor(until) + 1)
        last = self._loop.n
        lines = list[Line]()
        for entry in read_starts(log, self._loop.context.name, self._loop.seq):
            if last < first:
                break
            if entry.kind == "requests_counted":
                counted = decoded(entry.seq, RequestCount, entry.body)
                low, high = max(last - counted.n_governed + 1, first), min(last, ceil(behind) - 1)
                last -= counted.n_governed
                if low <= high:
                    line: Line = {"type": "unrecorded", "n": low, "count": high - low + 1}
                    line |= {"audit_share": counted.audit_share, "seq": entry.seq, "digest": entry.digest}
                    lines.append(line)
                continue
            request = decoded(entry.seq, Request, entry.body)
            if request.episode_id in self._loop.state.deliveries.repeats:
                request = replace(request, delivery=2)
            if request.ungoverned is None:
                if last < behind:
                    lines.append(self._request(log, last, entry, request))
                last -= 1
        yield from reversed(lines)

    def _request(self, log: LogReader, number: int, entry: ExtractRow, request: Request) -> Line:
        line: Line = {
            "type": "request",
            "n": number,
            "id": request.episode_id,
            "seq": entry.seq,
            "digest": entry.digest,
            "at": request.received_at_s,
            "unit": request.unit,
            "audit": request.audit,
            "p": request.propensity,
        }
        whole = request.mode != "enforce" or bool(request.arms)
        unusual = {
            "mode": (request.mode, "enforce"),
            "delivery": (request.delivery, 1),
            "kept_by": (request.kept_by, ""),
            "keep_rate": (1.0 if whole else request.keep_rate, 1.0),
        }
        line |= {name: value for name, (value, usual) in unusual.items() if value != usual}
        # An audit that a change of guarantee left pending counts as lost, whatever it returned later.
        given_up = number in {n for n, _ in self._loop.state.epoch.pending}
        ended = None if given_up else find_outcome_row(log, request.episode_id, self._loop.seq)
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
        one = self._audits.get(request.episode_id)
        if one is None:
            return {"status": "left out", "why": "the loop does not have it any more"}
        z = _changes(one.z.tolist())
        clusters = list(cluster_names(request))
        if one.is_lost:
            return {"status": "lost", "why": outcome.end_reason, "z": z, "clusters": clusters}
        line: Line = {
            "status": "returned",
            "clusters": clusters,
            "d": _changes(one.differs.astype(int).tolist()),
            "z": z,
        }
        if one.n_orders > 1:
            line |= {"orders": one.n_orders, "sum": _changes(one.total.tolist())}
        differs = bool(one.differs.any()) or one.n_orders > 1
        return line | (self._label(one.audit) if one.is_labelled and differs else {})

    def _label(self, audit: Audit) -> Line:
        counts = self._source.counts[audit.id]
        seq = next(label.seq for label in reversed(audit.labels) if label.feedback == counts)
        right, answer = counts.correct, audit.outcome.answer
        if right is None and counts.gold is not None:
            right = answer is not None and self._loop.context.match(answer, counts.gold)
        line: Line = {"label": seq, "right": right}
        return line if counts.episode_id is not None else {**line, "response_id": counts.response_id}


def _changes(values: Sequence[int]) -> list[list[int]]:
    """Run-length encode values by level as (first level, value); the value before the first level is 0."""
    runs = [next(group) for _, group in groupby(enumerate(values), key=lambda entry: entry[1])]
    return [[level, value] for level, value in runs if level or value]
