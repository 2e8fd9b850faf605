"""What the figures say in sentences, each computed from the cells: also where ours is worse or over the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.page.cells import BUDGETS
from bench.page.found import Found, name_budget, percent, points
from bench.page.prior import EVEN
from bench.page.prior import sentences as prior_sentences
from bench.page.study import PUBLISHED

from suffice.assurance.bounds import exact_binomial
from suffice.replay.study.sets import OURS


def sentences(found: Found) -> Iterator[str]:
    for budget in BUDGETS:
        yield from _frozen(found, budget)
    yield from _as_published(found)
    for budget in BUDGETS:
        yield from _online(found, budget)
    yield from _evaluator(found)
    yield from prior_sentences(found)


def _frozen(found: Found, budget: float) -> Iterator[str]:
    judged = [(name, study["budgets"][f"{budget:g}"]) for name, study in found.studies()]
    if not judged:
        return
    ours = {name: rules[OURS] for name, rules in judged}
    theirs = {name: rules[PUBLISHED] for name, rules in judged}
    behind = [
        f"`{name}` ({percent(ours[name]['frozen']['saved'])} against {percent(theirs[name]['frozen']['saved'])})"
        for name, _ in judged
        if ours[name]["frozen"]["saved"] < theirs[name]["frozen"]["saved"] - EVEN
    ]
    n = len(judged)
    yield (
        f"**{name_budget(budget).capitalize()}, frozen.** Ours saves at least as much as the best of all published"
        f" rules, picked in the same way, on {n - len(behind)} of {n} sets{_listed('; less on', behind)}."
        f" On the questions that it was not picked on, ours loses more than the budget on {_over(ours, budget)},"
        f" the published rules on {_over(theirs, budget)}. In random halvings of the questions, a point of ours"
        f" misses the budget on the other half in {_range(ours)}, a point of theirs in {_range(theirs)}."
    )


def _over(rules: dict[str, dict[str, dict[str, float]]], budget: float) -> str:
    over = [
        f"`{name}` ({points(rule['frozen']['drop'])})"
        for name, rule in rules.items()
        if rule["frozen"]["drop"] > budget + 1e-9
    ]
    if not over:
        return "no set"
    return f"{len(over)} set{'s' if len(over) > 1 else ''}: {', '.join(over)}"


def _range(rules: dict[str, dict[str, float]]) -> str:
    shares = [100 * rule["misses"] for rule in rules.values()]
    return f"{min(shares):.0f} to {max(shares):.0f} %"


def _listed(before: str, names: Sequence[str]) -> str:
    return f"{before} {', '.join(names)}" if names else ""


def _as_published(found: Found) -> Iterator[str]:
    pairs = [
        (rule["drop"], name, of)
        for of, study in found.studies()
        for name, rule in study["as_published"].items()
        if name not in study["never"]
    ]
    if not pairs:
        return
    over = [sum(drop > budget for drop, *_ in pairs) for budget in BUDGETS]
    drop, rule, of = max(pairs)
    yield (
        f"**As published.** A rule at the setting of its paper loses more than 1 point in {over[0]} of {len(pairs)}"
        f" pairs of a rule and a set, more than 2 points in {over[1]}; the most {100 * drop:.1f} points, `{rule}` on"
        f" `{of}`."
    )


def _online(found: Found, budget: float) -> Iterator[str]:
    served = {name: found.streams(name, "ours", "once", budget) for name in found.sets}
    ours = {name: one for name, one in served.items() if one is not None}
    if not ours:
        return
    rules = {name: found.rules(name, "once", budget) for name in ours}
    best = {name: max(of.values(), key=lambda one: one.saved_late) for name, of in rules.items() if of}
    ahead = [name for name in best if ours[name].saved_late >= best[name].saved_late - EVEN]
    behind = [
        f"`{name}` ({percent(ours[name].saved_late)} against {percent(best[name].saved_late)})"
        for name in best
        if name not in ahead
    ]
    large = [
        f"`{name}` {percent(ours[name].saved_late)} against {percent(best[name].saved_late)}"
        for name in best
        if (study := found.study(name)) is not None and not study["too_small"]
    ]
    n_over, n = sum(one.n_over for one in ours.values()), sum(one.n for one in ours.values())
    where = [f"`{name}` ({one.n_over} of {one.n})" for name, one in ours.items() if one.n_over]
    ends = exact_binomial(n_over, n, 0.95)
    theirs = sum(one.n_over for of in rules.values() for one in of.values())
    n_theirs = sum(one.n for of in rules.values() for one in of.values())
    yield (
        f"**{name_budget(budget).capitalize()}, online.** {n_over} of {n} streams of ours lose more than the budget in"
        f" their second half (exact 95 %: {100 * ends.low:.0f} to {100 * ends.high:.0f} %){_listed(': on', where)}."
        f" Of the published rules at their published settings, under the same certificate, {theirs} of {n_theirs} do."
        f" Ours saves at least as much as the best of them on {len(ahead)} of {len(best)}"
        f" sets{_listed('; less on', behind)}."
        f"{_listed(' On those large enough to certify, ours against theirs:', large)}{'.' if large else ''}"
    )


def _evaluator(found: Found) -> Iterator[str]:
    judged = {name: line for name in found.sets if (line := found.evaluator(name)) is not None}
    if not judged:
        return
    stops = [
        f"`{name}` ({percent(one['saved'])}, {points(one['drop'])} at {name_budget(budget)}{_unstopped(found, name)})"
        for name, line in judged.items()
        for budget in BUDGETS
        if "budgets" in line and not (one := line["budgets"][f"{budget:g}"])["note"]
    ]
    without = sum("budgets" not in line for line in judged.values())
    few = sum("budgets" in line and all(one["note"] for one in line["budgets"].values()) for line in judged.values())
    yield (
        f"**e-valuator** only gives up runs that will fail. Of {len(judged)} sets, {without} record no score of a"
        f" verifier, and {few} have too few successful runs for its threshold{_listed('; it stops runs on', stops)}."
    )


def _unstopped(found: Found, name: str) -> str:
    study = found.study(name)
    if study is None or study["kind"] != "samples":
        return ""
    return f"; decided votes alone save {percent(study['unstopped']['saved'])}"
