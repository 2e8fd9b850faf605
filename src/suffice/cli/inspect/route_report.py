"""Formats the status of one route as names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from suffice.agent.plan import describe_plan
from suffice.assurance.estimate import Account, IntervalEstimate, MoneyTotals, RouteReport
from suffice.assurance.exposure import describe_part
from suffice.assurance.forecast import RouteForecast
from suffice.assurance.forecast_grades import describe_records
from suffice.assurance.guarantee import MIN_SHARE, AuditEvidence
from suffice.assurance.money import usd
from suffice.assurance.runs import TokenTotals
from suffice.assurance.satisfaction import SatisfactionEffect
from suffice.assurance.spending import describe_spending
from suffice.formatting import format_estimate
from suffice.report.sentences import duration, no_next_level
from suffice.sanitize import plural, printable
from suffice.store.routes.deployments import Phase
from suffice.store.rows.events import ProposedVersion
from suffice.types import BudgetAccount

if TYPE_CHECKING:
    from suffice.report.snapshot import PairStatus, RouteHoldings, RouteSnapshot

Lines: TypeAlias = Iterator[tuple[str, str]]  # names and values

MOST_NAMED: Final = 3  # callers in one line
percent: Final = "{:.1%}".format
tokens: Final = "{:,.1f}".format
rating: Final = "{:.3f}".format


def points(value: float) -> str:
    return f"{100 * value:+.2f} points"


def status_sections(one: RouteSnapshot) -> Sequence[Sequence[tuple[str, str]]]:
    report, sure = one.report, f"{one.confidence:.0%}"
    parts = [
        _standing(one),
        _traffic(one),
        _exact_match(one, sure),
        _spending(report, sure),
        _agent(one),
        _forecast(one),
    ]
    if not report.n_governed and one.control is None:  # without governed requests there is no EM and no saving
        parts[2:] = [iter([("tokens, all", _totals(report.tokens)), ("cost, all", _paid(report.money))])]
    return [list(part) for part in parts]


def _standing(one: RouteSnapshot) -> Lines:
    earlier = [mode for mode in one.report.modes if mode != one.mode]
    if one.refused is not None:
        yield "behaves as observe", one.refused
    yield "mode", one.mode + (f" (earlier: {', '.join(earlier)})" if earlier else "")
    yield "policy", one.policy_version or "none"
    if one.control is None:
        if one.promise_state != "gone":  # then nothing acts
            yield "certified", one.lag if one.lag and not one.report.n_governed else _certified(one.report)
    elif one.pairs:
        yield from _pair_lines(one.pairs, one.control, promise_state=one.promise_state)
    else:
        acts = one.promise_state in ("certified", "budgeted")
        yield from phase_lines(one.control, per_s=one.evidence.audits_per_s, acts=acts)
    yield "promise", one.promise
    if one.lag:
        yield "figures", one.lag
    if one.held is not None:
        yield from held_lines(one.held)


def _certified(report: RouteReport) -> str:
    if not report.n_governed:
        return "nothing was governed yet"
    return "yes" if report.certified else "UNCERTIFIED: no test vouches for this policy here"


def held_lines(one: RouteHoldings) -> Lines:
    for sentence in one.incidents:
        yield "INCIDENT", f"WAITS FOR A DECISION: {printable(sentence)}"
    for sentence in one.overrides:
        yield "held by a person", printable(sentence)
    if one.n_to_review:
        third = f", {one.n_contradicted:,} of them contradicted" if one.n_contradicted else ""
        yield "to review", f"{plural(one.n_to_review, 'run')}{third}: suffice review next"


# --------------------------------------------------------------------------- the certificate


def phase_lines(one: Phase, *, per_s: float | None, acts: bool) -> Lines:
    """Describe the certification of a learned policy; `per_s`: audits a second, lately; None: unknown."""
    yield "phase", _phase(one, acts=acts)
    if one.phase in ("cold start", "burst"):
        left = max(0, one.n_burst - one.n_requests)
        rest = _in_time(left, per_s).replace(", in", ", the rest in")
        runs = f"{one.n_requests:,} of {one.n_burst:,} full runs{rest}" if one.n_burst else "nothing was looked at yet"
        yield "evidence", runs
    elif one.n_audits:
        clusters = f" ({one.clusters})" if one.clusters else ""
        yield "evidence", f"{one.n_audits:,} audits in the window{clusters}: {one.reason}"
        yield ("next level", _next(one, per_s)) if one.spending is None else ("budget", _spent(one.spending))
    if one.classes:
        each = ", ".join(f"{name or 'none'} at level {level}" for name, level in one.classes)
        yield "held classes", f"{each}: they lose more than twice the budget"
    if one.n_labels_wanted:
        yield "labels wanted", f"{one.n_labels_wanted:,}: audits whose stop would have answered otherwise"
    yield from _ending_lines(one)


def _ending_lines(one: Phase) -> Lines:
    yield "last alarm", one.alarm or "none"
    if one.look:
        yield "last look", one.look
    for sentence in one.failing:
        yield "FAILS", printable(sentence)
    if not one.attended:
        yield "control loop", "NOT RUNNING: no worker looks after this route now; see suffice worker"


def _phase(one: Phase, *, acts: bool) -> str:
    ends = "" if acts else "; not acted on"
    if one.phase == "certified":
        proved = f"a drop below {100 * (one.max_em_drop or 0):g} points at {one.confidence or 0:.0%}"
        if one.exposure < 1:
            refuted = 100 * (one.max_em_drop or 0) / one.exposure
            proved += f"; it acts on {describe_part(one.exposure)}: a drop of {refuted:g} points is refuted"
        return f"certified, {one.arm or f'level {one.level} of {one.n_levels}'}: {proved}{ends}"
    if one.phase == "budgeted" and one.spending is not None:
        return (
            f"budgeted, level {one.level} of {one.n_levels}: the drop is kept on average, with no confidence; certified"
            f" is level {one.spending.floor}{ends}"
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
        return "no audit is recorded yet"
    waiting = f", {one.n_waiting:,} of them with a guess until their label comes" if one.n_waiting else ""
    return (
        f"a mean drop of {100 * one.em_drop:.2f} of {100 * one.max_em_drop:.2f} points over {one.n_audits:,} audits of"
        f" this epoch{waiting}; bounds moved the level by {abs(one.clipped):.1f} in all"
    )


def _next(one: Phase, per_s: float | None) -> str:
    why = no_next_level(one)
    if why is not None:
        return why.in_status
    return f"about {one.n_missing:,} more audits at the rates seen{_in_time(one.n_missing or 0, per_s)}"


def _in_time(n: int, per_s: float | None) -> str:
    return f", in {duration(n / per_s)} at the present rate" if n and per_s else ""


def audits_missing(evidence: AuditEvidence, *, max_em_drop: float, sure: str) -> str:
    goal = f"an EM drop of at most {100 * max_em_drop:g} points at {sure}"
    if evidence.n_missing is None:
        return f"no number of audits certifies {goal}"
    seen = f"{evidence.n_disagreements:,} of {evidence.n_audits:,} disagree so far"
    if evidence.n_missing == 0:
        return f"none: {evidence.n_audits:,} are enough for {goal} ({seen})"
    when = "no rate is known yet" if evidence.wait_s is None else f"in {duration(evidence.wait_s)} at the present rate"
    return f"{evidence.n_missing:,} more, {when}, if none of them disagrees, for {goal} ({seen})"


def _pair_lines(arms: Sequence[PairStatus], phase: Phase, *, promise_state: str) -> Lines:
    one = arms[0]
    yield "phase", _pair_phase(arms, phase, promise_state)
    for arm in arms:
        yield from _arm_lines(arm, f"{arm.arm}: " if len(arms) > 1 else "")
    noise = "not compared yet: one pair in ten is a second full run"
    if one.n_repeats:
        share = one.n_repeats_disagree / one.n_repeats
        noise = f"{share:.1%} of {one.n_repeats:,} answered otherwise: so much is the model's own noise"
    yield "two full runs", noise
    if n := phase.n_labels_wanted:
        yield "labels wanted", f"{n:,}: pairs whose two answers differ, which count as lost until then"
    yield from _ending_lines(phase)


def _arm_lines(one: PairStatus, which: str) -> Lines:
    sure, goal = f"{one.confidence:.0%}", f"a drop below {100 * one.max_em_drop:g} points"
    if one.em_drop is None or one.em_drop_high is None:
        yield "pairs", f"none yet: each audit is to be run a second time, with {one.arm}"
    else:
        drop = f"EM drop {100 * one.em_drop:+.2f} points, below {100 * one.em_drop_high:.2f} proved at {sure}"
        differing = f"{one.n_disagree / one.n:.1%} of the answers differ"
        yield "pairs", f"{one.n:,} audits run again with {one.arm}: {drop}; {differing}"
    if one.n_missing is None:
        yield "pairs missing", f"{which}no number of such pairs would prove {goal}"
    elif one.n_missing:
        yield "pairs missing", f"{which}about {one.n_missing:,} more at the rates seen, for {goal}"
    else:
        yield "pairs missing", f"{which}none: these prove {goal}"


def _pair_phase(arms: Sequence[PairStatus], phase: Phase, promise_state: str) -> str:
    first, sure = arms[0].arm, f"{arms[0].confidence:.0%}"
    if phase.phase == "paused":
        return f"PAUSED until somebody resumes it: {phase.reason}"
    if phase.level:
        ends = "" if promise_state == "certified" else "; not acted on"
        return f"certified, {phase.arm}: a drop below {100 * (phase.max_em_drop or 0):g} points at {sure}{ends}"
    if promise_state == "uncertified":
        return f"UNCERTIFIED: {first} acts, and is not proved"
    return f"all in full: {first} is not proved"


# --------------------------------------------------------------------------- traffic, EM, tokens and money


def _traffic(one: RouteSnapshot) -> Lines:
    report = one.report
    running = f" ({one.n_without_outcome:,} without an outcome yet)" if one.n_without_outcome else ""
    governed = "unknown" if report.governed_share is None else percent(report.governed_share)
    yield "requests", f"{report.n_requests + one.n_without_outcome:,}{running}"
    yield "governed", governed + frequencies(report.ungoverned, ", untouched: ")
    yield "ended", frequencies(report.end_reasons) or "none yet"
    yield "stopped early", f"{report.n_stopped:,} (would have stopped in full runs: {report.n_would_stop:,})"
    if report.n_trials:
        yield "trial answers read", _trials(report)
    yield "audits", f"{report.n_audits:,}{_left(report)}"
    if one.control is None and one.mode != "off":
        yield "audits missing", _missing(one)
    yield "labels", f"{plural(report.n_labelled, 'request')}, scored by {one.scorer}"
    yield "failed open", frequencies(report.degraded) or "never"


def _left(report: RouteReport) -> str:
    """Return how many audits were left by their clients, and by whom."""
    n_left, n_lost = sum(one.n_left for one in report.leavers), report.n_abandoned_audits
    parts = [f"{n_left:,} left by their clients"] if n_left else []
    parts += [f"{n_lost:,} abandoned, counted as losses"] if n_lost else []
    callers = {f"caller {one.caller}": one.n_left for one in report.leavers[:MOST_NAMED] if one.caller}
    return f" ({', '.join(parts)}{frequencies(callers, '; most by ')})" if parts else ""


def frequencies(counts: Mapping[str, int], before: str = "") -> str:
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return before + ", ".join(f"{reason} {n:,}" for reason, n in largest) if counts else ""


def _trials(report: RouteReport) -> str:
    sentence = f"{report.n_trials_read:,} of {report.n_trials:,}"
    if report.n_trials_read >= MIN_SHARE * report.n_trials:
        return sentence
    return (
        f"{sentence}, fewer than {MIN_SHARE:.0%}, and what the scorer cannot read stops nothing: end"
        " [routes.NAME.probe] answer_prefix where the model would go on with the answer"
    )


def _missing(one: RouteSnapshot) -> str:
    if one.certifies is False:
        return "none are counted: no control loop certifies this route's policy, whatever its audits say"
    if not one.report.n_governed:
        return "nothing was governed yet"
    return audits_missing(one.evidence, max_em_drop=one.max_em_drop, sure=f"{one.confidence:.0%}")


def _exact_match(one: RouteSnapshot, sure: str) -> Lines:
    measured, drop = one.report.measured, one.report.measured.em_drop
    sentence = format_estimate(drop, lambda value: f"{100 * value:+.1f} points", sure)
    if drop is not None:
        sentence += f", lost {measured.n_lost:,}, gained {measured.n_gained:,}"
    yield "EM, full runs", format_estimate(measured.em_full, percent, sure)
    yield "EM, live runs", format_estimate(measured.em_live, percent, sure)
    yield "EM, stopped runs", format_estimate(measured.em_stopped, percent, sure)
    yield "EM drop, paired", sentence
    yield "satisfaction, effect", summarize_effect(one.forecast)
    if one.forecast is not None and one.forecast.price is not None:
        yield "price of EM", one.forecast.price.sentence
    yield "disagreement", format_estimate(measured.disagreement, percent, sure)


def _spending(report: RouteReport, sure: str) -> Lines:
    measured = report.measured
    yield "tokens, full run", format_estimate(measured.tokens_full, tokens, sure)
    yield "tokens, stopped run", format_estimate(measured.tokens_stopped, tokens, sure)
    gross = "" if measured.gross_saving is None else f"; {measured.gross_saving:.1%} before probes and second calls"
    yield "saving", _saving(measured.saving, sure) + gross
    if measured.decided_saving is not None:
        yield "decided votes", _saving(measured.decided_saving, sure)
    yield "would have saved", _saving(measured.would_save, sure)
    yield "tokens, all", _totals(report.tokens)
    if not report.money.n_known:
        yield "cost", _paid(report.money)
        return
    yield "cost, full run", format_estimate(measured.cost_full, usd, sure)
    yield "cost, stopped run", format_estimate(measured.cost_stopped, usd, sure)
    yield "cost reduction", _saving(measured.cost_reduction, sure)
    yield "saved so far", format_estimate(measured.saved_usd, usd, sure)
    yield "would have saved, USD", format_estimate(measured.would_save_usd, usd, sure)
    yield "cost, all", _paid(report.money)


def _saving(estimate: IntervalEstimate | None, sure: str) -> str:
    sentence = format_estimate(estimate, percent, sure)
    return sentence if estimate is None else f"{sentence}, {estimate.method}"


def _totals(sums: TokenTotals) -> str:
    unknown = f"; unknown for {sums.n_unknown:,} requests" if sums.n_unknown else ""
    return (
        f"client {sums.client_prompt:,} prompt ({sums.client_cached:,} cached) + "
        f"{sums.client_completion:,} completion, probes {sums.probe:,}, "
        f"extra prompts {sums.extra_prompt:,} ({sums.cached_prompt:,} cached), "
        f"discarded {sums.discarded:,}{unknown}"
    )


def _paid(money: MoneyTotals) -> str:
    if not money.n_known:
        return "unknown: no prices are set ([upstreams.NAME.prices])"
    paid = f"{usd(money.governed_usd + money.ungoverned_usd)} for {plural(money.n_known, 'request')}"
    if money.ungoverned_usd:
        paid += f", {usd(money.ungoverned_usd)} of it untouched"
    if money.overhead_usd:
        paid += f", {usd(money.overhead_usd)} for probes, thoughts read again and tokens thrown away"
    if money.n_unknown:
        paid += f"; unknown for {plural(money.n_unknown, 'request')}"
    return paid


# --------------------------------------------------------------------------- the agent, the forecast


def _agent(one: RouteSnapshot) -> Lines:
    plan = one.control.plan if one.control is not None else None
    if plan is not None:
        yield "agent", f"plan {plan.number}, at request {plan.at:,}: {plan.reason}"
        for name, value in describe_plan(plan):
            yield f"  {name}", value


def _forecast(one: RouteSnapshot) -> Lines:
    if one.forecast is None:
        yield "watched", "not yet: no worker has looked at this route; see suffice worker"
    else:
        yield from _forecast_lines(one.forecast)
    if one.spending is not None:
        yield from describe_spending(one.spending)
    for worse in one.worse_arms:
        yield "experiment", f"ALERT: {worse.experiment}: {worse.summary[0]}"
    if one.proposal is not None:
        yield from proposal_lines(one.proposal)
    if one.budget is not None:
        yield "proposal", f"max_em_drop = {one.budget.max_em_drop:g} instead of {one.budget.before:g}: {one.budget.why}"


def _forecast_lines(one: RouteForecast) -> Lines:
    since = f"requests {one.since:,} to {one.at:,} of epoch {one.epoch}; intervals hold at every look"
    if one.cap_tokens is None:
        seen = plural(one.at, "request")
        since = f"{seen}; accounts begin behind the first hundred runs, which say what a run can cost"
    yield "watched", since
    if one.whole is not None:
        sure = f"{one.confidence:.0%}"
        yield from _account(one.whole, sure)
        for part in one.classes:
            yield f"  class {part.query_class or 'none'}", _account_part(part, sure)
        for part in one.versions:
            yield f"  {part.version or 'no version'}", _account_part(part, sure)
    if one.served is not None:
        yield "served", f"{'ALERT: ' * one.served.is_over}{one.served.sentence}"
    yield from satisfaction_effect_lines(one)
    for forecast in (one.drop, one.em):
        if forecast is not None:
            doubt = " (in doubt: more requests are audited)" if forecast.doubtful else ""
            yield "forecast", f"ALERT: {forecast.reason}" if forecast.alert else f"{forecast.reason}{doubt}"
            likely = f"{forecast.ahead_low:.2%} to {forecast.ahead_high:.2%}"
            yield "  3,000 requests on", f"{forecast.ahead:.2%} ({likely} in nine of ten forecasts)"
    yield from describe_records(one.records)
    if one.drop is None and one.em is None:
        yield "forecast", "none yet: it takes 3,000 requests of an epoch, with something that stops"


def _account(one: Account, sure: str) -> Lines:
    cut = f"; {one.n_cut:,} runs with more tokens than the account allows for count as that" if one.n_cut else ""
    yield "  EM, full runs", format_estimate(one.em_full, percent, sure)
    yield "  EM, stopped runs", format_estimate(one.em_stopped, percent, sure)
    yield "  EM drop", format_estimate(one.em_drop, points, sure)
    yield "  tokens, full run", format_estimate(one.tokens_full, tokens, sure)
    yield "  tokens, live run", format_estimate(one.tokens_live, tokens, sure)
    yield "  stops on audits save", format_estimate(one.saving, percent, sure) + cut


def _account_part(one: Account, sure: str) -> str:
    if not one.known:
        return f"unknown: {one.n_audits:,} audits of {one.n_runs:,} runs"
    drop, saving = format_estimate(one.em_drop, points, sure), format_estimate(one.saving, percent, sure)
    return f"EM drop {drop}; stops on its audits save {saving}"


def proposal_lines(one: ProposedVersion) -> Lines:
    at = ""
    if one.saving is not None and one.drop is not None:
        at = f"; at the route's budget it saves {one.saving.value:.1%} at a drop of {points(one.drop.value)}"
    parent = f", beside {one.parent}" if one.parent else ""
    by = ", by the value of stopping" if (one.card or {}).get("target") == "value" else ""
    yield "proposal", f"{one.address} ({one.reason}{parent}{by}): {one.verdict}, {one.why}{at}; active nowhere"


# --------------------------------------------------------------------------- satisfaction


def summarize_effect(one: RouteForecast | None) -> str:
    if one is None:
        return "not measured: no worker has looked at this route"
    if one.satisfaction is None:
        return "not measured: no watched run was rated"
    if one.satisfaction.effect is None:
        return "not measured: needs rated audits beside rated stopped runs"
    return _effect(one.satisfaction, f"{one.confidence:.0%}") + _rates(one.satisfaction)


def satisfaction_effect_lines(one: RouteForecast) -> Lines:
    sure = f"{one.confidence:.0%}"
    for effect in one.whole_effects:
        yield from _satisfaction_lines(effect, sure)
        parts = [part for part in one.likings if part.measure == effect.measure and part is not effect]
        classes = [(f"    class {part.query_class or 'none'}", part) for part in parts if part.query_class is not None]
        versions = [(f"    {part.version or 'no version'}", part) for part in parts if part.version is not None]
        for name, part in (*classes, *versions):
            known = format_estimate(part.everybody, rating, sure)
            yield name, known if part.effect is None else f"effect {_effect(part, sure)}"


def _satisfaction_lines(effect: SatisfactionEffect, sure: str) -> Lines:
    measure = f"  {effect.measure}"
    if effect.full is None and effect.stopped is None:
        yield measure, format_estimate(effect.everybody, rating, sure)
    if effect.full is not None:
        yield f"{measure}, full", format_estimate(effect.full, rating, sure)
    if effect.stopped is not None:
        yield f"{measure}, stopped", format_estimate(effect.stopped, rating, sure)
    if effect.effect is not None:
        yield f"{measure}, effect", _effect(effect, sure) + _rates(effect)
    if effect.n_set_aside:
        yield measure, f"{effect.n_set_aside:,} ratings set aside: one key speaks for 5% of the runs"


def _effect(satisfaction: SatisfactionEffect, sure: str) -> str:
    effect = satisfaction.effect
    assert effect is not None
    up = effect.low is not None and effect.low > 0
    down = effect.high is not None and effect.high < 0
    worse = (down and satisfaction.better == "higher") or (up and satisfaction.better == "lower")
    verdict = "worse where stopped" if worse else "better where stopped" if up or down else "no difference is proven"
    return f"{format_estimate(effect, '{:+.3f}'.format, sure, unit='rating')}: {verdict}"


def _rates(effect: SatisfactionEffect) -> str:
    if effect.rated_audits is None or effect.rated_stopped is None:
        return ""
    return f" (rated: {effect.rated_audits:.1%} of audits, {effect.rated_stopped:.1%} of stopped runs)"
