"""A proposal and its report card as text for a person, and as one JSON object for a program.

The same numbers in both. Knows how things are said and refuses to know how they were measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from suffice.assurance.estimate import IntervalEstimate
from suffice.learn.calibrating import Calibration
from suffice.learn.report_card import ClassHarm, FrontierPoint, ParentComparison, ReportCard
from suffice.learn.retrain import FitLineage, VersionProposal


def as_json(proposal: VersionProposal) -> str:
    """One JSON object on one line, keys sorted; every number in it is finite."""
    return json.dumps(proposal.plain(), sort_keys=True, allow_nan=False)


def as_text(proposal: VersionProposal) -> str:
    """What a person reads before anything is rolled out, line by line."""
    address = "none" if proposal.version is None else proposal.version.address
    lines = [f"proposal {address}: {proposal.verdict} ({proposal.why})", *_lineage(proposal.lineage)]
    if proposal.card is not None:
        lines += _card(proposal.card)
    lines.append("Nothing is in force by this: a certificate and a rollout decide.")
    return "\n".join(lines)


def _lineage(lineage: FitLineage) -> list[str]:
    """Where it comes from."""
    recipe, n_full, n_prompts = lineage.recipe, f"{lineage.n_runs:,}", f"{lineage.n_prompts:,}"
    said = {
        "parent": f"{lineage.parent or 'none'}, refitted {_reason(lineage.reason)}",
        "data": f"{lineage.digest}, log rows {lineage.first_seq:,} to {lineage.last_seq:,}",
        "learned from": f"{n_full} full runs ({lineage.n_by_design:,} by design) of {n_prompts} prompts",
        "labels": f"{lineage.n_labelled:,}, {lineage.n_stopped:,} of them of stopped runs",
        "left out": "; ".join(f"{n:,} {why}" for why, n in lineage.left_out) or "none",
        "recipe": f"{recipe.parts}, half-life {recipe.half_life:g}, {recipe.n_levels} levels, seed {recipe.seed}",
        "packages": ", ".join(f"{name} {version}" for name, version in lineage.versions),
    }
    return [f"  {what:<13} {value}" for what, value in said.items()]


def _reason(reason: str) -> str:
    return {"schedule": "on schedule", "drift": "after drift"}.get(reason, reason)


def _card(card: ReportCard) -> list[str]:
    """What it did on prompts that its models had not seen."""
    judged = f"judged on {card.n_runs:,} full runs of {card.n_prompts:,} prompts that the judged models have not seen"
    frontier = _table(("EM drop aimed at", "saving", "EM drop", "lost", "gained"), map(_point, card.frontier))
    lines = ["", f"{judged}; {card.n_labelled:,} with a label, the others by agreement", "", *frontier]
    if card.value:
        lines += ["", "value models", *_table(("", "saving", "EM drop", "lost", "gained"), map(_point, card.value))]
    if card.compared is not None:
        lines += ["", *_compared(card.compared, card.max_em_drop)]
    header = ("class", "runs", "saving", "EM drop", "lost", "gained", "")
    lines += ["", *_table(header, map(_class, card.classes))]
    lines += ["", *_calibration("P(as good)", card.calibration)]
    if card.failing is not None:
        lines += ["", *_calibration("P(full run fails)", card.failing)]
    return lines


def _compared(compared: ParentComparison, max_em_drop: float) -> list[str]:
    gain = f"{_signed(compared.gain)} saving at the same EM drops, up to {max_em_drop:.1%}"
    picked = f"as picked: {_signed(compared.saving)} saving, {_signed(compared.drop)} EM drop"
    return [f"against the parent {compared.parent}: {gain}", picked]


def _point(point: FrontierPoint) -> Sequence[str]:
    shares = (_share(value) for value in (point.saving, point.drop, point.lost, point.gained))
    return (f"{point.max_em_drop:.1%}", *shares)


def _class(harm: ClassHarm) -> Sequence[str]:
    shares = (_share(value) for value in (harm.saving, harm.drop, harm.lost, harm.gained))
    return (harm.query_class or "(none)", f"{harm.n_runs:,}", *shares, harm.status)


def _calibration(what: str, found: Calibration) -> list[str]:
    rows = [(f"{b.low:.3f} to {b.high:.3f}", f"{b.n:,}", f"{b.said:.3f}", _share(b.seen)) for b in found.bins]
    return [
        f"{what}: calibration error {_share(found.ece)}, too sure by {_signed(found.bias)}",
        *_table(("said between", "rows", "said", "seen"), rows),
    ]


def _share(value: IntervalEstimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.value:.2%}"
    return f"{value.value:.2%} [{value.low:.2%}, {value.high:.2%}]"


def _signed(value: IntervalEstimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.value:+.2%}"
    return f"{value.value:+.2%} [{value.low:+.2%}, {value.high:+.2%}]"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as they need, the first to the left and the others to the right."""
    table = [header, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(header))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
