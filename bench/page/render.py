"""Writes the page of benchmarks from the stored cells alone: what was not computed says so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from statistics import fmean

from bench.claims.results import ROOT
from bench.page.cells import BUDGETS
from bench.page.found import DASH, GAP, NOT_RUN, Found, Streams, name_budget, percent, points, table
from bench.page.papers import CLAIMS, Claim
from bench.page.prior import frozen_table, online_tables
from bench.page.sets import SOURCES
from bench.page.store import Line
from bench.page.study import MARGINS, PUBLISHED
from bench.page.verdicts import sentences

from suffice.replay.study.sets import OURS

_SMALL = " \\*"
PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: str, found: Found) -> str:
    """The page with its figures written anew; what stands outside of the marked blocks is kept.

    Raises KeyError for a block that nobody knows.
    """
    made = {
        "glance": _glance,
        "verdicts": _verdicts,
        "sets": _sets,
        "details": _details,
        "again": _again,
        "prior_online": online_tables,
        "prior_frozen": frozen_table,
        "papers": _papers,
        "margins": _margins,
        "cells": _cells,
    }

    def fill(block: re.Match[str]) -> str:
        text = "\n".join(part.rstrip("\n") + "\n" for part in made[block[2]](found))
        return f"{block[1]}\n{text}\n{block[3]}"

    return _BLOCK.sub(fill, page)


# ---- the first table


def _glance(found: Found) -> Iterator[str]:
    head = ["set", "full EM", "best published rule, frozen", "ours, frozen", "oracle"]
    head += ["best published rule, online", "ours, online", "streams of ours over the budget"]
    for budget in BUDGETS:
        yield f"**At most {name_budget(budget)} of EM lost**"
        yield table(head, [_glance_row(found, name, study, budget) for name, study in found.studies()])


def _verdicts(found: Found) -> Iterator[str]:
    yield "\n".join(f"- {sentence}" for sentence in sentences(found))


def _glance_row(found: Found, name: str, study: Line, budget: float) -> list[str]:
    rules = study["budgets"][f"{budget:g}"]
    ours, theirs = rules[OURS]["frozen"], rules[PUBLISHED]["frozen"]
    online = found.streams(name, "ours", "once", budget)
    served = found.rules(name, "once", budget)
    best = max(served, key=lambda rule: served[rule].saved_late, default=None)
    return [
        f"[{name}](#{anchor(name)}){_SMALL if study['too_small'] else ''}",
        f"{study['em']:.3f}",
        _both(theirs["saved"], theirs["drop"], budget),
        f"**{percent(ours['saved'])}** ({points(ours['drop'], budget)})",
        percent(study["oracles"]["agrees"]["saved"]),
        NOT_RUN if best is None else f"{_both(*_late(served[best]), budget)} {best}",
        NOT_RUN if online is None else f"**{percent(online.saved_late)}** ({points(online.drop_late, budget)})",
        NOT_RUN if online is None else online.over,
    ]


def _late(one: Streams) -> tuple[float, float]:
    return one.saved_late, one.drop_late


def _both(saved: float, drop: float, budget: float) -> str:
    return f"{percent(saved)} ({points(drop, budget)})".replace(" ", GAP)


def anchor(name: str) -> str:
    """Of a heading, as GitHub makes it."""
    kept = "".join(c for c in name.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


# ---- the sets


def _sets(found: Found) -> Iterator[str]:
    rows = []
    for name, study in found.studies():
        source = SOURCES.get(name.partition(",")[0])
        runs = f"{study['n_runs']:,} / {study['n_questions']:,}"
        rows.append([f"`{name}`", source.what if source else DASH, study["kind"], runs, f"{study['tokens']:,.0f}"])
        rows[-1] += [source.origin if source else DASH, source.licence if source else DASH]
    yield table(["set", "what", "kind", "runs / questions", "tokens a run", "source", "licence"], rows)


# ---- every rule on every set


def _details(found: Found) -> Iterator[str]:
    for name, study in found.studies():
        agrees, right = (study["oracles"][which] for which in ("agrees", "right"))
        yield f"### {name}\n"
        yield (
            f"{study['kind'].capitalize()}, {study['n_runs']:,} runs of {study['n_questions']:,} questions, full EM"
            f" {study['em']:.3f}. Oracles: {percent(agrees['saved'])} saved at the first step with the full run's"
            f" answer, {percent(right['saved'])} ({points(right['drop'])}) at the first right one."
            f"{_decided(study)}\n"
        )
        for budget in BUDGETS:
            shown = " open" if budget == BUDGETS[0] else ""
            yield f"<details{shown}><summary>At most {name_budget(budget)}</summary>\n"
            yield table(_HEAD, _rule_rows(found, name, study, budget))
            yield "\n</details>\n"
        if study["never"]:
            rules = ", ".join(f"`{rule}`" for rule in study["never"])
            why = "the set does not record what they read, or its runs are too short"
            yield f"Never stop here at any setting, since {why}: {rules}.\n"


def _decided(study: Line) -> str:
    if study["kind"] != "samples":
        return ""
    return f" Ending each vote once it is decided saves {percent(study['unstopped']['saved'])}; every row has that."


_HEAD = ("rule", "as published", "frozen", "95 %: saved; drop", "misses", "hindsight", "online", "over")


def _rule_rows(found: Found, name: str, study: Line, budget: float) -> Iterator[list[str]]:
    rules = study["budgets"][f"{budget:g}"]
    served = found.rules(name, "once", budget)
    others = [rule for rule in rules if rule not in (OURS, PUBLISHED, *study["never"])]
    others.sort(key=lambda rule: (-rules[rule]["frozen"]["saved"], rule))
    yield [
        "**ours**",
        DASH,
        *_study_cells(rules[OURS], budget),
        *_online(found.streams(name, "ours", "once", budget), budget),
    ]
    yield ["*best published rule*", DASH, *_study_cells(rules[PUBLISHED], budget), DASH, DASH]
    for rule in others:
        at = study["as_published"].get(rule)
        published = DASH if at is None else _both(at["saved"], at["drop"], budget)
        online = _online(served.get(rule), budget) if rule in study["as_published"] else [DASH, DASH]
        yield [f"`{rule}`", published, *_study_cells(rules[rule], budget), *online]
    yield _evaluator_row(found, name, budget)
    online = _online(found.streams(name, "reference", "once", budget), budget)
    yield ["reference", DASH, DASH, DASH, DASH, DASH, *online]


def _study_cells(rule: Line, budget: float) -> list[str]:
    frozen, late = rule["frozen"], rule["hindsight"]
    hindsight = late["rule"] if late["rule"] == "never" else f"{percent(late['saved'])} {late['rule']}"
    return [
        _both(frozen["saved"], frozen["drop"], budget),
        _ranges(frozen),
        f"{100 * rule['misses']:.0f} %",
        hindsight,
    ]


def _ranges(at: Line) -> str:
    """The intervals of what is saved and of the drop; a rule that changes nothing has none."""
    saved, drop = ([100 * end for end in at[field]] for field in ("saved_range", "drop_range"))
    if not any(saved + drop):
        return DASH
    return f"{saved[0]:.1f} to {saved[1]:.1f}; {drop[0]:.2f} to {drop[1]:.2f}"


def _online(one: Streams | None, budget: float) -> list[str]:
    return [NOT_RUN, NOT_RUN] if one is None else [_both(*_late(one), budget), f"{one.n_over} of {one.n}"]


def _evaluator_row(found: Found, name: str, budget: float) -> list[str]:
    line = found.evaluator(name)
    if line is None:
        return ["e-valuator", DASH, NOT_RUN, DASH, DASH, DASH, NOT_RUN, NOT_RUN]
    if "budgets" not in line:
        return ["e-valuator", DASH, "no score recorded", DASH, DASH, DASH, DASH, DASH]
    at = line["budgets"][f"{budget:g}"]
    frozen = f"{_both(at['saved'], at['drop'], budget)}{'; ' + at['note'] if at['note'] else ''}"
    return [
        "e-valuator",
        DASH,
        frozen,
        _ranges(at),
        DASH,
        DASH,
        *_online(found.streams(name, "e-valuator", "once", budget), budget),
    ]


# ---- long traffic, papers, margins


def _again(found: Found) -> Iterator[str]:
    rows = []
    for name in found.sets:
        for budget in BUDGETS:
            ours, served = found.streams(name, "ours", "again", budget), found.rules(name, "again", budget)
            if ours is None:
                continue
            best = max(served, key=lambda rule: served[rule].saved_late, default=None)
            reference = found.streams(name, "reference", "again", budget)
            rows.append(
                [
                    name,
                    name_budget(budget),
                    f"**{percent(ours.saved_late)}** ({points(ours.drop_late, budget)})",
                    percent(ours.saved),
                    _settled(found, name, budget),
                    f"{ours.n_over} of {ours.n}",
                    NOT_RUN if best is None else f"{_both(*_late(served[best]), budget)} {best}",
                    NOT_RUN if reference is None else _both(*_late(reference), budget),
                ]
            )
    head = ["set", "budget", "ours, second half", "whole stream", "in force at the end / best true level"]
    head += ["over", "best published rule", "reference"]
    yield table(head, rows) if rows else f"{NOT_RUN.capitalize()}.\n"


def _settled(found: Found, name: str, budget: float) -> str:
    """What the level in force at the end saves of all recorded runs, and the best one that truly keeps the budget."""
    ends = [line for cell, line in found.cells.items() if cell[:4] == (name, "ours", "again", budget)]
    return " / ".join(percent(fmean(line[field] for line in ends)) for field in ("in_force", "best_level"))


def _papers(found: Found) -> Iterator[str]:
    head = ["rule", "in its paper", "saved there", "drop there", "set here", "saved here", "drop here"]
    yield table(head, [_paper_row(found, claim) for claim in CLAIMS])


def _paper_row(found: Found, claim: Claim) -> list[str]:
    study = found.study(claim.set)
    here = None if study is None else study["as_published"].get(claim.rule)
    if here is not None and claim.model:
        models = here.get("by_model", {})
        here = next((one for model, one in models.items() if model.lower().endswith(claim.model.lower())), None)
    cells = [NOT_RUN, DASH] if here is None else [percent(here["saved"]), points(here["drop"])]
    if study is not None and claim.rule in study["never"]:
        cells = ["never stops", DASH]
    where = f"`{claim.set}`{', ' + claim.model if claim.model else ''}"
    return [f"`{claim.rule}`", claim.of, claim.saved, claim.drop, where, *cells]


def _margins(found: Found) -> Iterator[str]:
    rows = [
        [
            name,
            " / ".join(f"{100 * study['plainly'][pool]:.0f} %" for pool in (PUBLISHED, OURS)),
            *(f"{percent(at['saved'])} / {100 * at['misses']:.0f} %" for at in study["margins"].values()),
        ]
        for name, study in found.studies()
    ]
    yield table(["set", "plainly misses", *(f"{margin:g}" for margin in MARGINS)], rows)


# ---- how the page was made


def _cells(found: Found) -> Iterator[str]:
    by_code = Counter((line["code"], line["commit"], line["on"]) for line in found.cells.values())
    rows = [[f"`{code}`", f"`{commit}`", on, f"{n:,}"] for (code, commit, on), n in sorted(by_code.items())]
    hours = sum(line["cpu_s"] for line in found.cells.values()) / 3600
    yield f"{len(found.cells):,} cells, {hours:.2f} hours of CPU time.\n"
    yield table(["code", "commit", "on", "cells"], rows)
    missing = [name for name in SOURCES if not any(other.partition(",")[0] == name for other, _ in found.studies())]
    if missing:
        yield f"\nNot run: {', '.join(f'`{name}`' for name in missing)}.\n"
