"""The lines of `suffice status` about one route: phase, evidence, accounts, ratings, pairs, overrides and incidents."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.forecast import Forecast, Outlook
from suffice.assurance.ledger import Account
from suffice.assurance.runs import Match
from suffice.assurance.satisfaction import SatisfactionEffect
from suffice.errors import ConfigError
from suffice.formatting import format_estimate, format_time
from suffice.review.holds import Override, describe_override, standing
from suffice.review.queue import ItemState
from suffice.sanitize import plural, printable
from suffice.settings import Route, Settings
from suffice.store.database.views import EpisodeWithLabels, LogReader, read_episodes
from suffice.store.people.reviews import read_reviews
from suffice.store.routes.in_force import Holds, InForce
from suffice.store.routes.phases import Phase
from suffice.store.rows.records import ArmWorth, ProposedVersion
from suffice.types import BudgetAccount
from suffice.wiring.keys import good_file

if TYPE_CHECKING:  # the gateway and what learns: most of the time that `suffice status` would take
    from suffice.control.evidence.audits import Audit
    from suffice.gateway.last_good import GoodRoute, LastGood
    from suffice.learn.effort import CertifiedArms


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteHoldings:
    overrides: tuple[str, ...]  # that hold now, in words, with who and until when
    incidents: tuple[str, ...]  # that wait for a decision: name and summary
    n_to_review: int  # items that a reviewer can take now
    n_contradicted: int  # of them: reviewers contradict each other


def read_held(connection: LogReader, holds: Holds, *, now_s: float) -> dict[str, RouteHoldings]:
    """Every route on which people hold something, or on which something waits for them. Raises StoreError."""
    waiting: dict[str, list[ItemState]] = {}
    for one in read_reviews(connection).queue.waiting(now_s=now_s):
        waiting.setdefault(one.item.route, []).append(one)
    entries = dict[str, RouteHoldings]()
    for name in {*holds.routes, *waiting}:
        held, mine = holds.of(name), waiting.get(name, [])
        entries[name] = RouteHoldings(
            overrides=override_words(held.overrides, now_s),
            incidents=tuple(f"{case.incident.incident}: {case.incident.summary}" for case in held.open_cases),
            n_to_review=len(mine),
            n_contradicted=sum(one.needs_third for one in mine),
        )
    return entries


def override_words(overrides: Iterable[Override], now_s: float) -> tuple[str, ...]:
    return tuple(
        f"{describe_override(one)} until {format_time(one.expires_at_s)}, by {one.author}: {one.reason}"
        for one in standing(overrides, now_s)
    )


def held_lines(one: RouteHoldings | None) -> list[tuple[str, str]]:
    if one is None:
        return []
    lines = [("INCIDENT", f"WAITS FOR A DECISION: {printable(sentence)}") for sentence in one.incidents]
    lines += [("held by a person", printable(sentence)) for sentence in one.overrides]
    if one.n_to_review:
        third = f", {one.n_contradicted:,} of them contradicted" if one.n_contradicted else ""
        lines.append(("to review", f"{plural(one.n_to_review, 'run')}{third}: suffice review next"))
    return lines


def last_words(settings: Settings, route: str | None = None) -> list[str]:
    from suffice.wiring.startup import last_good

    try:
        good = last_good(settings)
    except (ConfigError, OSError) as error:
        return [f"and the last-good file says nothing: {error}"]
    if good is None:
        return []
    now_s = time.time()
    named = {name: one for name, one in good.routes.items() if route in (None, name)}
    width = max(map(len, named), default=0)
    return [_when(settings, good, now_s), *(f"  {name:<{width}}  {_served(one, now_s)}" for name, one in named.items())]


def _when(settings: Settings, good: LastGood, now_s: float) -> str:
    until_s = good.at_s + settings.store.last_good_s
    serves = (
        f"may be served until {format_time(until_s)}"
        if now_s < until_s
        else "is too old to be served: all runs in full"
    )
    return f"{good_file(settings)} says what was in force at {format_time(good.at_s)}, and {serves}"


def _served(one: GoodRoute, now_s: float) -> str:
    held, made = one.held, one.held.publication
    sentences = [] if one.refused is None else [f"behaves as observe: {one.refused}"]
    if held.pause is not None:
        sentences.append(f"PAUSED by {held.pause.author}: {held.pause.reason}")
    elif made is not None and held.level:
        proved = "certified" if made.certified else "budgeted"
        sentences.append(f"{proved}, level {held.level} of {made.n_levels - 1}, publication {made.number}")
    elif one.standing is not None:
        sentences.append(f"the policy that a rollout brought: {one.standing.get('policy')}")
    else:
        sentences.append("no level is in force")
    return printable("; ".join((*sentences, *override_words(one.overrides, now_s))))


def phase_lines(one: Phase, *, per_s: float | None, acts: bool) -> list[tuple[str, str]]:
    """What a reader sees.

    per_s  audits a second, lately; None: unknown
    acts   is the route in `enforce`?
    """
    lines = [("phase", _phase(one, acts=acts))]
    if one.phase in ("cold start", "burst"):
        left = max(0, one.n_burst - one.n_requests)
        rest = _in_time(left, per_s).replace(", in", ", the rest in")
        runs = f"{one.n_requests:,} of {one.n_burst:,} full runs{rest}" if one.n_burst else "nothing was looked at yet"
        lines.append(("evidence", runs))
    elif one.n_audits:
        lines.append(("evidence", f"{one.n_audits:,} audits in the window: {one.reason}"))
        lines.append(("next level", _next(one, per_s)) if one.spending is None else ("budget", _spent(one.spending)))
    if one.classes:
        each = ", ".join(f"{name or 'none'} at level {level}" for name, level in one.classes)
        lines.append(("held classes", f"{each}: they lose more than twice the budget"))
    if one.n_labels_wanted:
        lines.append(("labels wanted", f"{one.n_labels_wanted:,}: audits whose stop would have answered otherwise"))
    return lines + ending_lines(one)


def ending_lines(one: Phase) -> list[tuple[str, str]]:
    lines = [("last alarm", one.alarm or "none")]
    if not one.attended:
        lines.append(("control loop", "NOT RUNNING: no worker looks after this route now; see suffice worker"))
    return lines


def wait(wait_s: float) -> str:
    for unit, unit_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if wait_s >= 2 * unit_s:
            return f"{wait_s / unit_s:,.0f} {unit}"
    return f"{wait_s:,.0f} s"


def _phase(one: Phase, *, acts: bool) -> str:
    if one.phase == "certified":
        proved = f"a drop below {100 * (one.max_em_drop or 0):g} points at {one.confidence or 0:.0%}"
        return f"certified, level {one.level} of {one.n_levels}: {proved}" + ("" if acts else "; not acted on")
    if one.phase == "budgeted" and one.spending is not None:
        return (
            f"budgeted, level {one.level} of {one.n_levels}: the drop is kept on average, with no confidence; certified"
            f" is level {one.spending.floor}" + ("" if acts else "; not acted on")
        )
    if one.phase == "searching":
        return "all in full: nothing is certified"
    if one.phase == "unattended":
        return "all in full: no control loop has begun with this route"
    if one.phase == "paused":
        return f"PAUSED until somebody resumes it: {one.reason}"
    why = "" if one.reason == one.phase else f": {one.reason}"
    return f"{one.phase}, all in full{why}"


def _spent(one: BudgetAccount) -> str:
    if one.em_drop is None or one.max_em_drop is None:
        return "nothing is booked yet"
    waiting = f", {one.n_waiting:,} of them with a guess until their label comes" if one.n_waiting else ""
    return (
        f"a mean drop of {100 * one.em_drop:.2f} of {100 * one.max_em_drop:.2f} points over {one.n_audits:,} audits of"
        f" this epoch{waiting}; bounds moved the level by {abs(one.clipped):.1f} in all"
    )


def _next(one: Phase, per_s: float | None) -> str:
    if one.level and one.level == one.n_levels:
        return "none: this is the last"
    if one.ceiling is not None and one.level == one.ceiling:
        return "none: people's ratings allow no higher one in this epoch"
    if one.n_missing is None:
        return "no number of such audits would certify it"
    return f"about {one.n_missing:,} more audits at the rates seen{_in_time(one.n_missing, per_s)}"


def _in_time(n: int, per_s: float | None) -> str:
    return f", in {wait(n / per_s)} at the present rate" if n and per_s else ""


def summarize_effect(one: Outlook | None) -> str:
    if one is None:
        return "not measured: no worker has looked at this route"
    satisfaction = one.satisfaction
    if satisfaction is None:
        return "not measured: no watched run was rated"
    if satisfaction.effect is None:
        return "not measured: needs rated audits beside rated stopped runs"
    return _effect(satisfaction, f"{one.confidence:.0%}") + _rates(satisfaction)


def liking_lines(one: Outlook) -> list[tuple[str, str]]:
    sure, lines = f"{one.confidence:.0%}", list[tuple[str, str]]()
    for effect in one.whole_likings:
        lines += _whole(effect, sure)
        parts = [part for part in one.likings if part.measure == effect.measure and part is not effect]
        classes = [part for part in parts if part.query_class is not None]
        versions = [part for part in parts if part.version is not None]
        lines += [(f"    class {part.query_class or 'none'}", _part(part, sure)) for part in classes]
        lines += [(f"    {part.version or 'no version'}", _part(part, sure)) for part in versions]
    return lines


def _whole(effect: SatisfactionEffect, sure: str) -> list[tuple[str, str]]:
    lines = []
    if effect.full is None and effect.stopped is None:
        lines.append((f"  {effect.measure}", _shown(effect.everybody, sure)))
    for runs, result in (("full", effect.full), ("stopped", effect.stopped)):
        if result is not None:
            lines.append((f"  {effect.measure}, {runs}", _shown(result, sure)))
    if effect.effect is not None:
        lines.append((f"  {effect.measure}, effect", _effect(effect, sure) + _rates(effect)))
    if effect.n_set_aside:
        lines.append(
            (f"  {effect.measure}", f"{effect.n_set_aside:,} ratings set aside: one key speaks for 5% of the runs")
        )
    return lines


def _part(effect: SatisfactionEffect, sure: str) -> str:
    if effect.effect is not None:
        return f"effect {_effect(effect, sure)}"
    return _shown(effect.everybody, sure)


def _effect(satisfaction_effect: SatisfactionEffect, sure: str) -> str:
    effect = satisfaction_effect.effect
    assert effect is not None
    up = effect.low is not None and effect.low > 0
    down = effect.high is not None and effect.high < 0
    worse = (down and satisfaction_effect.better == "higher") or (up and satisfaction_effect.better == "lower")
    verdict = "worse where stopped" if worse else "better where stopped" if up or down else "no difference is proven"
    return f"{_shown(effect, sure, sign=True, unit='pair')}: {verdict}"


def _rates(effect: SatisfactionEffect) -> str:
    if effect.rated_audits is None or effect.rated_stopped is None:
        return ""
    return f" (rated: {effect.rated_audits:.1%} of audits, {effect.rated_stopped:.1%} of stopped runs)"


def _shown(one: IntervalEstimate | None, sure: str, *, sign: bool = False, unit: str = "") -> str:
    if one is None:
        return "not measured"
    form = "+.3f" if sign else ".3f"
    between = "" if one.low is None or one.high is None else f" [{one.low:{form}}, {one.high:{form}}] at {sure}"
    note = f" ({one.note})" if one.note else ""
    return f"{one.value:{form}}{between}, {plural(one.n, unit) if unit else f'n={one.n:,}'}{note}"


def outlook_lines(one: Outlook | None) -> list[tuple[str, str]]:
    """What a reader sees; every interval may be read at any moment, as often as one likes."""
    if one is None:
        return [("watched", "not yet: no worker has looked at this route; see suffice worker")]
    lines = [("watched", _since(one))]
    if one.whole is not None:
        sure = f"{one.confidence:.0%}"
        lines += _account(one.whole, sure)
        lines += [(f"  class {part.query_class or 'none'}", _account_part(part, sure)) for part in one.classes]
        lines += [(f"  {part.version or 'no version'}", _account_part(part, sure)) for part in one.versions]
    lines += liking_lines(one)
    return lines + _forecasts(one)


def proposal_lines(one: ProposedVersion | None) -> list[tuple[str, str]]:
    if one is None:
        return []
    at = (
        ""
        if one.saving is None or one.drop is None
        else (f"; at the route's budget it saves {one.saving.value:.1%} at a drop of {_points(one.drop.value)}")
    )
    parent = f", beside {one.parent}" if one.parent else ""
    return [("proposal", f"{one.address} ({one.reason}{parent}): {one.verdict}, {one.why}{at}; in force nowhere")]


def arm_lines(one: ArmWorth | None) -> list[tuple[str, str]]:
    """What the tuner proposed last; [] where it never did."""
    return [] if one is None else [("tuner", f"{one.arm} instead of {one.before}: {one.reason}; in force nowhere")]


def _since(one: Outlook) -> str:
    if one.cap_tokens is None:
        seen = plural(one.at, "request")
        return f"{seen}; accounts begin behind the first hundred runs, which say what a run can cost"
    return f"requests {one.since:,} to {one.at:,} of epoch {one.epoch}; intervals hold at every look"


def _account(one: Account, sure: str) -> list[tuple[str, str]]:
    def tokens(value: float) -> str:
        return f"{value:,.1f}"

    cut = f"; {one.n_cut:,} runs with more tokens than the account allows for count as that" if one.n_cut else ""
    return [
        ("  EM, full runs", format_estimate(one.em_full, _rate, sure)),
        ("  EM, stopped runs", format_estimate(one.em_stopped, _rate, sure)),
        ("  EM drop", format_estimate(one.em_drop, _points, sure)),
        ("  tokens, full run", format_estimate(one.tokens_full, tokens, sure)),
        ("  tokens, live run", format_estimate(one.tokens_live, tokens, sure)),
        ("  stops on audits save", format_estimate(one.saving, _rate, sure) + cut),
    ]


def _account_part(one: Account, sure: str) -> str:
    if not one.known:
        return f"unknown: {one.n_audits:,} audits of {one.n_runs:,} runs"
    drop, saving = format_estimate(one.em_drop, _points, sure), format_estimate(one.saving, _rate, sure)
    return f"EM drop {drop}; stops on its audits save {saving}"


def _forecasts(one: Outlook) -> list[tuple[str, str]]:
    forecasts = [forecast for forecast in (one.drop, one.em) if forecast is not None]
    if not forecasts:
        return [("forecast", "none yet: it takes 3,000 requests of an epoch, with something that stops")]
    return [("forecast", _forecast(forecast)) for forecast in forecasts]


def _forecast(one: Forecast) -> str:
    if one.alert:
        return f"ALERT: {one.reason}"
    return one.reason + (" (in doubt: more audits would tell)" if one.doubtful else "")


def _rate(value: float) -> str:
    return f"{value:.1%}"


def _points(value: float) -> str:
    return f"{100 * value:+.2f} points"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatus:
    """What audits that were asked twice say by now; one that differs and has no label counts as lost."""

    arm: str
    n: int  # pairs with the arm; audits that their client left are among them, as lost
    n_disagree: int
    em_drop: float | None  # mean of Z; None: there is no pair
    em_drop_high: float | None  # the smallest drop that the pairs refute, at every look
    n_missing: int | None  # pairs to the certificate at the rates seen; 0: enough; None: no number would do
    n_repeats: int  # pairs of two full runs
    n_repeats_disagree: int
    max_em_drop: float  # fraction: what is to be proved
    confidence: float


def read_pairs(connection: LogReader, name: str, route: Route, match: Match, held: InForce) -> PairStatus | None:
    """What a route's log says of its arm; None: it has none that is certified by pairs. Raises StoreError."""
    if not route.is_paired:
        return None
    from suffice.control.jobs.base import since
    from suffice.control.loop.paired import FULL, AuditPairs
    from suffice.learn.effort import certify_arms, pairs_missing

    behind = since(name, held, connection)
    audits, callers = _audits(read_episodes(connection, name, behind, ended_after=behind), route.arms)
    pairs = AuditPairs(match=match).of_audits(audits, timeout=0, callers=callers)
    delta = 1 - route.confidence
    result = certify_arms(pairs, n_arms=2, max_em_drop=route.max_em_drop, delta=delta, now=0)
    asked = (audit.episode.outcome.pair_arm for audit in reversed(audits))
    arm = next((arm for arm in asked if arm not in (None, FULL)), None) or route.arms[0]
    return _status(arm, result, route, n_missing=pairs_missing(result, max_em_drop=route.max_em_drop, delta=delta))


def _audits(items: Iterable[EpisodeWithLabels], arms: Sequence[str]) -> tuple[list[Audit], set[str]]:
    """Audits of a log that were asked twice, and the senders that asked the model."""
    from suffice.control.evidence.audits import Audit, GivenLabel
    from suffice.control.loop.paired import is_pair

    results, callers = list[Audit](), set[str]()
    for item in items:
        request, outcome = item.episode.request, item.episode.outcome
        callers.add(request.sender)
        if is_pair(request, outcome, arms):
            labels = tuple(GivenLabel(label.seq, label.feedback) for label in item.labels)
            audit = Audit(seq=item.seq, at=0, ended_at_s=0.0, episode=item.episode, labels=labels)
            results.append(audit)
    return results, callers - {""}


def _status(arm: str, arms: CertifiedArms, route: Route, *, n_missing: int | None) -> PairStatus:
    view = arms.views[0]
    return PairStatus(
        arm=arm,
        n=view.n,
        n_disagree=view.n_disagree,
        em_drop=view.drop if view.n else None,
        em_drop_high=view.drop_high if view.n else None,
        n_missing=n_missing,
        n_repeats=arms.repeats.n,
        n_repeats_disagree=arms.repeats.n_disagree,
        max_em_drop=route.max_em_drop,
        confidence=route.confidence,
    )


def pair_lines(one: PairStatus, phase: Phase, *, promise_state: str) -> list[tuple[str, str]]:
    sure = f"{one.confidence:.0%}"
    return [
        ("phase", _pair_phase(one, phase, sure, promise_state)),
        ("pairs", _seen(one, sure)),
        ("pairs missing", _missing(one)),
        ("two full runs", _noise(one)),
        *_wanted(phase),
        *ending_lines(phase),
    ]


def _pair_phase(one: PairStatus, phase: Phase, sure: str, promise_state: str) -> str:
    if phase.phase == "paused":
        return f"PAUSED until somebody resumes it: {phase.reason}"
    if phase.level:
        ends = "" if promise_state == "certified" else "; not acted on"
        return f"certified, {phase.arm}: a drop below {100 * (phase.max_em_drop or 0):g} points at {sure}{ends}"
    if promise_state == "uncertified":
        return f"UNCERTIFIED: {one.arm} acts, and is not proved"
    return f"all in full: {one.arm} is not proved"


def _seen(one: PairStatus, sure: str) -> str:
    if one.em_drop is None or one.em_drop_high is None:
        return f"none yet: each audit is to be asked a second time, with {one.arm}"
    return (
        f"{one.n:,} audits asked again with {one.arm}: EM drop {100 * one.em_drop:+.2f} points, below"
        f" {100 * one.em_drop_high:.2f} proved at {sure}; {one.n_disagree / one.n:.1%} of the answers differ"
    )


def _missing(one: PairStatus) -> str:
    goal = f"a drop below {100 * one.max_em_drop:g} points"
    if one.n_missing is None:
        return f"no number of such pairs would prove {goal}"
    if not one.n_missing:
        return f"none: these prove {goal}"
    return f"about {one.n_missing:,} more at the rates seen, for {goal}"


def _wanted(phase: Phase) -> list[tuple[str, str]]:
    n = phase.n_labels_wanted
    return [("labels wanted", f"{n:,}: pairs whose two answers differ, which count as lost until then")] if n else []


def _noise(one: PairStatus) -> str:
    if not one.n_repeats:
        return "not compared yet: one pair in ten is a second full run"
    share = one.n_repeats_disagree / one.n_repeats
    return f"{share:.1%} of {one.n_repeats:,} answered otherwise: so much is the model's own noise"
