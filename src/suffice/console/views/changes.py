"""The page of changes: who decided what, when and why, with the alerts and incidents between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from suffice.console.context import ViewContext, ViewRecord, page_of
from suffice.console.views.episodes import MOST_PAGE, PAGE, is_own_run, parse_whole_number
from suffice.errors import BadRequest
from suffice.store.audit.chain import Head, head, without_earlier_key
from suffice.store.people.audit_view import AuditEntry, entry_of, rows_before
from suffice.store.rows.events import EVENTS, UNCHAINED

AUDIT_CHUNK: Final = 500
# Bulk rows without a decision: they have pages of their own, or tell a person nothing …
HIDDEN: Final = {"request", "outcome", "feedback", "route_monitored", "job_ran", "label_wanted", "requests_counted"}
# … and rows that are listed only on request.
QUIET: Final = HIDDEN | {
    "review_asked",
    "review_drawn",
    "review_leased",
    "review_returned",
    "question_kept",
    "sources_kept",
    "alert_sent",
}
MOST_BODY_CHARS: Final = 6_000
_KINDS: Final = tuple(sorted(set(EVENTS) - HIDDEN))
_ROLLOUTS: Final = "rollout_begun rollout_moved rollout_undone"
_HOLDS: Final = "incident_opened incident_decided enforcement_paused enforcement_resumed kill_switched"
_OF_GATEWAYS: Final = "version_refused log_missed"
_GROUPED: Final = {
    "thresholds": (
        "Thresholds and settings",
        f"policy_published override_set override_ended config_changed incident_decided agent_planned {_ROLLOUTS}",
    ),
    "incidents": ("Incidents and pauses", _HOLDS),
    "alerts": (
        "Alerts",
        f"alarm_raised alert_raised rule_checked arm_worse watch_changed {_OF_GATEWAYS} alert_rule_set alerts_muted",
    ),
    "experiments": (
        "Experiments and rollouts",
        f"experiment_started experiment_changed experiment_stopped arm_worse version_proposed {_ROLLOUTS}",
    ),
    "access": ("People, keys and exports", "access_changed key_issued key_ended exported erased"),
    "verdicts": ("Verdicts", "review_verdict review_returned"),
}
# name: its words, and the kinds in it
GROUPS: Final = {name: (words, frozenset(kinds.split())) for name, (words, kinds) in _GROUPED.items()}
_TONES: Final[Mapping[str, str]] = {
    "alarm_raised": "bad",
    "incident_opened": "bad",
    "kill_switched": "bad",
    "alert_raised": "warn",
    "rule_checked": "warn",
    "watch_changed": "warn",
    "arm_worse": "warn",
    "enforcement_paused": "warn",
    "policy_published": "good",
    "enforcement_resumed": "good",
    "incident_decided": "accent",
    "override_set": "accent",
    "config_changed": "accent",
}
MOST_WHO: Final = 80


class AuditRow(ViewRecord, frozen=True):
    seq: int  # position in the log
    place: int | None  # index in the hash chain; None: this log has no chain
    at_s: float
    kind: str
    route: str
    author: str  # a person, or a worker; "": none
    before: str  # the state before, in words; "": none, or not recorded
    after: str  # the state after, in words
    reason: str
    body: str  # the whole record as JSON, truncated
    episode_id: str  # that it is about; "": none

    @property
    def tone(self) -> str:
        return _TONES.get(self.kind, "")


class ChangeFilter(ViewRecord, frozen=True):
    kind: str  # "": all
    group: str  # a key of GROUPS; "": all
    route: str  # "": all
    who: str  # part of the author's name; "": everybody
    before: int

    @property
    def fields(self) -> dict[str, str]:
        named = {"kind": self.kind, "group": self.group, "route": self.route, "who": self.who}
        return {name: value for name, value in named.items() if value}

    @property
    def kinds(self) -> frozenset[str]:
        kinds = GROUPS[self.group][1] if self.group else EVENTS.keys() - (frozenset() if self.kind else QUIET)
        return frozenset(kind for kind in kinds if not self.kind or kind == self.kind)


class Changes(ViewRecord, frozen=True):
    wanted: ChangeFilter
    lines: tuple[AuditRow, ...]
    older: int | None  # position for the next page; None: no older ones
    cut_short: bool  # the search stopped before the page was full
    looked_to_s: float | None  # Unix time of the oldest row that is shown; None: there is none
    kinds: tuple[str, ...]  # all kinds of the filter
    routes: tuple[str, ...]
    head: Head | None  # the chain's present head; None: this log has none

    @property
    def groups(self) -> Mapping[str, str]:
        return {name: words for name, (words, _) in GROUPS.items()}


def changes(view: ViewContext) -> Changes:
    wanted = parse_change_filter(view)
    limit = parse_whole_number(view.query, "limit", PAGE, most=MOST_PAGE)
    lines, older, cut_short = page_of(view, change_lines(view), limit)
    return Changes(
        wanted=wanted,
        lines=lines,
        older=older,
        cut_short=cut_short,
        looked_to_s=lines[-1].at_s if lines else None,
        kinds=_KINDS,
        routes=tuple(view.settings.routes),
        head=head(view.connection),
    )


def parse_change_filter(view: ViewContext) -> ChangeFilter:
    """Raises BadRequest."""
    query = view.query
    kind, group, who = query.get("kind", ""), query.get("group", ""), query.get("who", "").strip()
    if kind and kind not in _KINDS and kind != "feedback":
        raise BadRequest(f"kind: got {kind[:40]!r}; allowed: {', '.join(_KINDS)}", param="kind")
    if group and group not in GROUPS:
        raise BadRequest(f"group: got {group[:40]!r}; allowed: {', '.join(GROUPS)}", param="group")
    if len(who) > MOST_WHO:
        raise BadRequest(f"who: at most {MOST_WHO} characters", param="who")
    route = query.get("route", "")
    return ChangeFilter(
        kind=kind,
        group=group,
        route="" if route == "*" else route,
        who=who,
        before=parse_whole_number(query, "before", 0, most=2**53) or 2**62,
    )


def change_lines(view: ViewContext) -> Iterator[tuple[int, AuditRow | None]]:
    """Yield the place of each row, latest first, with the change if it matches."""
    wanted, chained = parse_change_filter(view), head(view.connection) is not None
    before, kinds = wanted.before, wanted.kinds - (UNCHAINED if chained else frozenset())
    while kinds:
        rows = rows_before(view.connection, before, AUDIT_CHUNK, kinds=kinds, chained=chained)
        for row in rows:
            line, before = None, row[2]
            if (not wanted.route or row[7] == wanted.route) and is_own_run(view, row[6]):
                line = _change(entry_of(view.connection, row), chained=chained)
            if line is not None and wanted.who.lower() not in line.author.lower():
                line = None
            yield before, line
        if len(rows) < AUDIT_CHUNK:
            return


def _change(entry: AuditEntry, *, chained: bool) -> AuditRow:
    plain = without_earlier_key(entry.kind, msgspec.json.decode(entry.body))
    body = msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()
    return AuditRow(
        seq=entry.seq,
        place=entry.place if chained else None,
        at_s=entry.at_s,
        kind=entry.kind,
        route=entry.route or "",
        author=entry.who,
        before=entry.before,
        after=entry.after,
        reason=entry.why,
        episode_id=entry.episode_id or "",
        body=body if len(body) <= MOST_BODY_CHARS else f"{body[:MOST_BODY_CHARS]}\n… ({len(body):,} characters)",
    )
