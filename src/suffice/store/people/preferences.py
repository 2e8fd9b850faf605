"""What people arrange for themselves and each other: rules for alerts, mutes of alerts, and saved views of runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogReader, LogSource, newest_events, read_kinds
from suffice.store.routes.period import PeriodFigures, read_periods, read_total
from suffice.store.routes.rollups import DAY_HOURS, HOUR_S
from suffice.store.rows.preferences import AlertMute, AlertRule, RuleAlert, RuleMeasure, SavedView

MEASURES: Final[Mapping[RuleMeasure, str]] = {
    "em_drop": "EM drop, paired on audits",
    "saved": "tokens saved, share of full runs",
    "stopped": "requests stopped early, share",
    "fail_open": "requests in which Suffice failed open, share",
    "errors": "requests that failed or broke off, share",
    "requests": "requests, number",
}
TEST_DAYS: Final = 14
MOST_MUTES: Final = 200
MOST_VIEWS: Final = 50  # of one person, removals included, that are read


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleCheck:
    value: float | None  # of the measure; None: unknown
    n_requests: int
    broken: bool


def latest_rules(source: LogSource) -> tuple[AlertRule, ...]:
    """Return the newest revision of each rule by name, disabled ones included."""
    events = (stored.event for stored in read_kinds(source, "alert_rule_set"))
    rules = {one.rule: one for one in events if isinstance(one, AlertRule)}
    return tuple(rules[name] for name in sorted(rules))


def open_rule_alerts(source: LogSource) -> dict[tuple[str, str], RuleAlert]:
    """Return the newest check of each rule and route."""
    checks = (stored.event for stored in read_kinds(source, "rule_checked"))
    return {(one.rule, one.route): one for one in checks if isinstance(one, RuleAlert)}


def active_mutes(source: LogSource, now_s: float) -> tuple[AlertMute, ...]:
    """Return the newest mute of each kind and route, of those that have not ended."""
    latest = dict[tuple[str, str], AlertMute]()
    for one in newest_events(source, AlertMute, MOST_MUTES):
        latest.setdefault((one.kind, one.route), one)
    return tuple(one for one in latest.values() if now_s < one.until_s)


def is_muted(mutes: tuple[AlertMute, ...], kind: str, route: str) -> bool:
    return any(one.kind in ("", kind) and one.route in ("", route) for one in mutes)


def check_rule(rule: AlertRule, figures: PeriodFigures) -> RuleCheck:
    """Compare the figures of a window with a rule; too few requests or an unknown figure break none."""
    value, n = _measured(rule.measure, figures), figures.sums.n_requests
    too_few = rule.measure != "requests" and n < rule.least_requests
    broken = value is not None and not too_few and (value > rule.limit if rule.side == "above" else value < rule.limit)
    return RuleCheck(value=value, n_requests=n, broken=broken)


def _measured(measure: RuleMeasure, figures: PeriodFigures) -> float | None:
    sums = figures.sums
    if measure == "requests":
        return float(sums.n_requests)
    if measure == "em_drop":
        return None if figures.em_drop is None else figures.em_drop.value
    if measure == "saved":
        return None if figures.saving is None else figures.saving.value
    part = {"stopped": sums.n_stopped, "fail_open": sums.n_degraded, "errors": sums.n_failed}[measure]
    return part / sums.n_requests if sums.n_requests else None


def window_now(log: LogReader, rule: AlertRule, route: str, now_s: float) -> PeriodFigures:
    """The figures of a rule's window: its last hours, the present one included."""
    hour = int(now_s // HOUR_S) + 1
    return read_total(log, route, since_hour=hour - rule.window_hours, until_hour=hour)


def describe_check(rule: AlertRule, check: RuleCheck) -> str:
    """What a rule says of a window, such as "EM drop … is 2.4 %, above 2 %, over 1,203 requests in 24 h"."""
    name, window = MEASURES[rule.measure], f"{check.n_requests:,} requests in {rule.window_hours} h"
    if check.value is None:
        return f"{name}: unknown over {window}"
    value, limit = _format(rule.measure, check.value), _format(rule.measure, rule.limit)
    state = rule.side if check.broken else "within"
    few = rule.measure != "requests" and check.n_requests < rule.least_requests
    note = f"; fewer than {rule.least_requests:,} requests, so nothing is said" if few else ""
    return f"{name} is {value}, {state} {limit}, over {window}{note}"


def _format(measure: RuleMeasure, value: float) -> str:
    return f"{value:,.0f}" if measure == "requests" else f"{100 * value:.4g} %"


def try_rule(log: LogReader, rule: AlertRule, routes: tuple[str, ...], now_s: float) -> str:
    """Say what a rule says now, and how often it would have been broken in the last two weeks."""
    n_windows = n_broken = 0
    now = list[str]()
    hour = int(now_s // HOUR_S) + 1
    n = max(1, TEST_DAYS * DAY_HOURS // rule.window_hours)
    for route in (rule.route,) if rule.route else routes:
        since = hour - n * rule.window_hours
        period, _ = read_periods(log, since_hour=since, until_hour=hour, bucket_hours=rule.window_hours, route=route)
        n_windows += len(period.buckets)
        n_broken += sum(check_rule(rule, one).broken for one in period.buckets)
        check = check_rule(rule, window_now(log, rule, route, now_s))
        now.append(f"{route}: {'ALERT, ' if check.broken else ''}{describe_check(rule, check)}")
    past = f"In the last {TEST_DAYS} days it would have been broken in {n_broken} of {n_windows} windows with requests."
    return f"{past} Now: {'; '.join(now) or 'there is no route'}."


def read_saved_views(source: LogSource, person: str) -> tuple[SavedView, ...]:
    """Return a person's views by name."""
    latest = dict[str, SavedView]()
    for one in newest_events(source, SavedView, MOST_VIEWS, prefix=person):
        latest.setdefault(one.name, one)
    return tuple(latest[name] for name in sorted(latest) if latest[name].query)


def save_view(writer: Decisions, person: str, name: str, query: str) -> bool:
    """Save a view under a name, in place of an earlier one; "": remove it. Return False after a race."""
    latest = newest_events(writer.path, SavedView, 1, prefix=person)
    number = latest[0].number + 1 if latest else 1
    return writer.write_new(SavedView(person=person, name=name, number=number, query=query))
