"""The nearest prior work beside ours: B-PAC on the same streams, BARGAIN on the same ladder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Final

from bench.page.bargain import RULES
from bench.page.bpac import least_requests
from bench.page.cells import BUDGETS
from bench.page.found import NOT_RUN, Found, Streams, name_budget, percent, points, table
from bench.page.store import Cell, Line
from bench.page.streams import LOOSE, STREAMS, risk_at

EVEN: Final = 5e-4  # of the tokens: less is no difference
_LOOSE_FIRST: Final = (LOOSE, *sorted(BUDGETS, reverse=True))
_PLAIN, _ERROR, _BARGAIN = RULES
_TITLES: Final = {"once": "Each run once", "again": "10,000 requests that draw whole questions again and again"}


def online_tables(page: Found) -> Iterator[str]:
    head = ["set", *(f"{who}, {name_budget(budget)}" for budget in _LOOSE_FIRST for who in ("B-PAC", "ours"))]
    for stream in STREAMS:
        by_budget = {budget: _pairs(page, stream, budget) for budget in _LOOSE_FIRST}
        names = [name for name in page.sets if any(name in pairs for pairs in by_budget.values())]
        rows = [[name, *_online_cells(by_budget, name)] for name in names]
        yield f"**{_TITLES[stream]}**\n"
        yield table(head, rows) if rows else f"{NOT_RUN.capitalize()}.\n"


def _pairs(page: Found, stream: str, budget: float) -> dict[str, tuple[Streams, Streams]]:
    """B-PAC and ours on each set where both were run."""
    pairs = dict[str, tuple[Streams, Streams]]()
    for name in page.sets:
        theirs, ours = (page.streams(name, part, stream, budget) for part in ("b-pac", "ours"))
        if theirs is not None and ours is not None:
            pairs[name] = theirs, ours
    return pairs


def _online_cells(by_budget: dict[float, dict[str, tuple[Streams, Streams]]], name: str) -> Iterator[str]:
    for budget, pairs in by_budget.items():
        if name not in pairs:
            yield from (NOT_RUN, NOT_RUN)
            continue
        best = max(one.saved_late for one in pairs[name])
        for one in pairs[name]:
            saved = percent(one.saved_late)
            yield f"{f'**{saved}**' if one.saved_late > best - EVEN else saved} ({points(one.drop_late, budget)})"


def frozen_table(page: Found) -> Iterator[str]:
    head = ["set", *(f"{rule}, {name_budget(budget)}" for budget in BUDGETS for rule in (*RULES, "its labels"))]
    rows = [[name, *_frozen_cells(line)] for name, line in _bargains(page)]
    yield table(head, rows) if rows else f"{NOT_RUN.capitalize()}.\n"


def _bargains(page: Found) -> Iterator[tuple[str, Line]]:
    cells = ((name, page.cells.get(Cell(name, "bargain"))) for name in page.sets)
    return ((name, line["budgets"]) for name, line in cells if line is not None)


def _frozen_cells(line: Line) -> Iterator[str]:
    for budget in BUDGETS:
        rules = line[f"{budget:g}"]
        yield from (f"{percent(rules[rule]['saved'])} / {100 * rules[rule]['misses']:.0f} %" for rule in RULES)
        yield f"{100 * rules[_BARGAIN]['labels']:.0f} %"


def sentences(page: Found) -> Iterator[str]:
    for budget in _LOOSE_FIRST:
        parts = [_against(pairs, stream) for stream in STREAMS if (pairs := _pairs(page, stream, budget))]
        if parts:
            yield (
                f"**B-PAC, {name_budget(budget)} at {100 * (1 - risk_at(budget)):.0f} %.** It can stop nothing before"
                f" request {least_requests(budget):,}. {' '.join(parts)}"
            )
    for budget in BUDGETS:
        lines = [line[f"{budget:g}"] for _, line in _bargains(page)]
        if lines:
            yield f"**BARGAIN, {name_budget(budget)}.** {_bargained(lines)}"


def _against(pairs: dict[str, tuple[Streams, Streams]], stream: str) -> str:
    ahead = [name for name, (theirs, ours) in pairs.items() if theirs.saved_late > ours.saved_late + EVEN]
    behind = [name for name, (theirs, ours) in pairs.items() if ours.saved_late > theirs.saved_late + EVEN]
    saved, ours_saved = (percent(fmean(pair[at].saved_late for pair in pairs.values())) for at in (0, 1))
    over, ours_over = (sum(pair[at].n_over for pair in pairs.values()) for at in (0, 1))
    n = sum(theirs.n for theirs, _ in pairs.values())
    n_ours = sum(ours.n for _, ours in pairs.values())
    return (
        f"{_TITLES[stream]}: it saves more than ours on {len(ahead)} of {len(pairs)} sets and less on {len(behind)}, on"
        f" average {saved} of the second half against {ours_saved}; {over} of {n} of its streams lose more than the"
        f" budget there, {ours_over} of {n_ours} of ours."
    )


def _bargained(lines: Sequence[Line]) -> str:
    more = sum(line[_BARGAIN]["saved"] > line[_ERROR]["saved"] + EVEN for line in lines)
    less = sum(line[_ERROR]["saved"] > line[_BARGAIN]["saved"] + EVEN for line in lines)
    own = max(line[_BARGAIN]["misses_own"] for line in lines)
    saved = {rule: percent(fmean(line[rule]["saved"] for line in lines)) for rule in RULES}
    misses = {rule: f"{100 * fmean(line[rule]['misses'] for line in lines):.0f} %" for rule in RULES}
    labels = [100 * line[_BARGAIN]["labels"] for line in lines]
    return (
        f"It saves more than one standard error on {more} of {len(lines)} sets and less on {less}: on average"
        f" {saved[_BARGAIN]} against {saved[_ERROR]}, and {saved[_PLAIN]} by plain tuning. On the other half it misses"
        f" the budget in {misses[_BARGAIN]} of the halvings, one standard error in {misses[_ERROR]}, plain tuning in"
        f" {misses[_PLAIN]}; on its own half, for which it makes its promise, in at most {100 * own:.0f} % on any set."
        f" It labels {min(labels):.0f} to {max(labels):.0f} % of the half."
    )
