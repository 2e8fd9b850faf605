"""What must hold after any number of deaths: of the log, beside what clients and the model server know themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from suffice.settings import Store
from suffice.store.database.location import database_at, log_location
from suffice.store.database.views import open_reader, read_events
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Epoch, Outcome, Publication, Request
from suffice_testing import FakeUpstream
from tests.replicas.cluster import Cluster, environment
from tests.replicas.load import Call, History

UNWRITTEN_S = 2.0  # a call that ended so shortly before its gateway died may have no outcome of its own
MOST_IN_FLIGHT = 40  # tokens of a cancelled call that were generated and never read
NONCE = re.compile(r"nonce\d+x\d+x")


@dataclass
class Report:
    """One line for each promise: the promise, whether it held, and the figures."""

    lines: list[tuple[str, bool, str]] = field(default_factory=list)

    def add(self, promise: str, holds: bool, figures: str) -> None:
        self.lines.append((promise, holds, figures))

    @property
    def broken(self) -> list[str]:
        return [f"{promise}: {figures}" for promise, holds, figures in self.lines if not holds]

    def __str__(self) -> str:
        wide = max(len(promise) for promise, _, _ in self.lines)
        rows = ((f"{promise:<{wide}}", "held  " if ok else "BROKEN", figures) for promise, ok, figures in self.lines)
        return "\n".join("  ".join(row) for row in rows)


@dataclass
class LogRows:
    requests: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    feedback: Counter[str] = field(default_factory=Counter)
    publications: list[Publication] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)


def read_rows(store_url: str) -> LogRows:
    rows = LogRows()
    with open_reader(database_at(log_location(Store(url=store_url)))) as reader:
        for stored in read_events(reader):
            event = stored.event
            if isinstance(event, Request):
                rows.requests[event.episode_id] += 1
            elif isinstance(event, Outcome):
                rows.outcomes[event.episode_id].append(event)
            elif isinstance(event, FeedbackEvent):
                rows.feedback[event.feedback.feedback_id] += 1
            elif isinstance(event, Publication):
                rows.publications.append(event)
            elif isinstance(event, Epoch):
                rows.epochs.append(event)
    return rows


def check(cluster: Cluster, history: History, fake: FakeUpstream, *, n_dropped: int = 0) -> Report:
    """`n_dropped` events were counted as dropped, because a queue was full."""
    report, rows = Report(), read_rows(cluster.store_url)
    _check_outcomes(report, rows, cluster, history, n_dropped)
    _check_sums(report, rows, history, fake)
    lost = set(history.acknowledged) - set(rows.feedback)
    paired = [name for name, n in rows.feedback.items() if n > 1]
    report.add(
        "no acknowledged feedback is lost",
        not lost and not paired,
        f"{len(history.acknowledged):,} acknowledged, {len(lost)} lost, {len(paired)} twice,"
        f" {history.n_feedback_failed} never acknowledged",
    )
    _check_publications(report, rows)
    verified = command("audit", "verify", "--config", cluster.config())
    report.add("the chain verifies", verified.returncode == 0, last_line(verified))
    return report


def _check_outcomes(report: Report, rows: LogRows, cluster: Cluster, history: History, n_dropped: int) -> None:
    odd = [name for name in rows.requests if len(rows.outcomes[name]) != 1]
    orphans = [name for name in rows.outcomes if name not in rows.requests]
    ended = [one for all_of_it in rows.outcomes.values() for one in all_of_it]
    ends, n_stopped = Counter(one.end_reason for one in ended), sum(one.stopped for one in ended)
    report.add(
        "every request has exactly one outcome",
        not odd and not orphans,
        f"{len(rows.requests):,} requests, {len(odd)} without one, {len(orphans)} outcomes alone;"
        f" {dict(ends)}, {n_stopped:,} stopped",
    )
    deaths = {member.name: member.deaths for member in cluster.gateways}
    answered = history.ended("done")
    missing = [call for call in answered if not is_recorded(call, rows)]
    unexplained = [call for call in missing if not _died_with_it(call, deaths[call.gateway], cluster)]
    report.add(
        "what a client got whole is on record, or its gateway died with the row in its queue",
        2 * len(unexplained) <= n_dropped,  # a request that is dropped takes its outcome along
        f"{len(answered):,} whole answers, {len(missing) - len(unexplained)} whose gateway died within"
        f" {UNWRITTEN_S:g} s or while the database was down, {len(unexplained)} for other reasons;"
        f" {n_dropped:,} events counted as dropped",
    )


def is_recorded(call: Call, rows: LogRows) -> bool:
    ended = rows.outcomes.get(call.episode or "", [])
    return len(ended) == 1 and ended[0].end_reason in ("done", "stopped")


def _died_with_it(call: Call, deaths: list[float], cluster: Cluster) -> bool:
    at = bisect_left(deaths, call.began_s)
    if at == len(deaths):
        return False
    death = deaths[at]
    outages = [(a, b) for a, b in cluster.database_deaths if a <= death and b >= call.began_s - UNWRITTEN_S]
    return death - call.ended_s <= UNWRITTEN_S or bool(outages)


def _check_sums(report: Report, rows: LogRows, history: History, fake: FakeUpstream) -> None:
    spent = Counter[str]()
    for seen in fake.completions:
        matched = NONCE.search(seen.request.text)
        if matched is not None:
            spent[matched[0]] += seen.n_tokens_sent
    exact, bounded, estimated, wrong = 0, 0, 0, list[str]()
    for call in history.ended("done"):
        if not is_recorded(call, rows):
            continue
        outcome = rows.outcomes[call.episode or ""][0]
        more = outcome.overhead
        payload = more.probe_tokens + more.discarded_tokens
        payload += 0 if outcome.usage is None else outcome.usage.completion_tokens
        is_cut = any(one.cancelled for one in outcome.calls)
        if any(one.source != "provider" and not one.cancelled for one in outcome.calls):
            estimated += 1  # passed through, and its client did not ask for the usage
        elif payload == spent[call.nonce]:
            exact += 1
        elif is_cut and 0 < spent[call.nonce] - payload <= MOST_IN_FLIGHT:
            bounded += 1
        else:
            wrong.append(f"{call.route} {call.nonce}: {payload} told, {spent[call.nonce]} generated")
    whole = {call.nonce for call in history.ended("done") if is_recorded(call, rows)}
    others = sum(n for nonce, n in spent.items() if nonce not in whole)
    report.add(
        "tokens equal the model server's own count",
        not wrong,
        f"{exact:,} requests equal, {bounded} with a cancelled call within {MOST_IN_FLIGHT} tokens, {len(wrong)} wrong,"
        f" {estimated} passed through without a count;"
        f" {others:,} of {spent.total():,} tokens in calls that died; {'; '.join(wrong[:3])}".rstrip("; "),
    )


def _check_publications(report: Report, rows: LogRows) -> None:
    numbers = defaultdict[str, list[int]](list)
    for made in rows.publications:
        numbers[made.route].append(made.number)
    gaps = [route for route, result in numbers.items() if sorted(result) != list(range(1, len(result) + 1))]
    torn = [one.reason for one in rows.epochs if "does not follow" in one.reason or "not in it" in one.reason]
    report.add(
        "no version is half-published or published twice",
        not gaps and not torn,
        f"{len(rows.publications)} publications of {len(numbers)} routes, {len(gaps)} with a gap,"
        f" {len(torn)} that a second worker could not reproduce{': ' + torn[0] if torn else ''}",
    )


def command(*words: str, source: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `suffice` as a member of a cluster would. source: the tree that it is imported from; None: this one."""
    program = [sys.executable, "-c", "from suffice.cli.main import main; main()", *words]
    return subprocess.run(program, env=environment(source), capture_output=True, text=True, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else ""


def unfinished(store_url: str) -> int:
    rows = read_rows(store_url)
    return sum(not rows.outcomes[name] for name in rows.requests)
