"""What a verdict changed: what was known of its route without the label that came of it, and with it.

    Look without the label, Look with it ──▶ Effect ──▶ a sentence for the reviewer

Plain data and words; `control.people.effects` counts. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from suffice.assurance.estimate import IntervalEstimate
from suffice.types import Feedback


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelEffect:
    n_audits: int  # that count
    n_pending: int  # of them: they disagree at a level in play, and no label says what that cost
    level: int  # that these audits certify; 0 never stops
    n_missing: int | None  # audits to the next level, at the rates seen; None: no number, or there is no next level
    em: IntervalEstimate | None  # of delivered answers, from the random control share; None: no drawing is through


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    item: str
    route: str
    label: Feedback | None  # that came of them; None: none yet
    before: LabelEffect
    after: LabelEffect
    level_in_force: int  # as published; the worker looks at every hundredth request of the route
    is_drawn: bool  # is it of the random control share, which alone moves the EM estimate?
    in_window: bool  # is the run among the audits that certify now?
    waits: bool = False  # nothing is learned in this epoch yet: the label is read when something is

    @property
    def said(self) -> str:
        if self.label is None:
            return "no label has come of it yet, so nothing has changed"
        if self.waits:
            return f"nothing is learned in this epoch yet, and the label is read when something is; {self._em()}"
        parts = [] if self.in_window else ["the run is not among the audits that certify now"]
        parts += [_pending(self.before, self.after), _missing(self.before, self.after)]
        if self.after.level != self.before.level:
            parts.append(
                f"the audits certify level {self.after.level} instead of {self.before.level};"
                f" {self.level_in_force} is in force until the worker looks"
            )
        else:
            parts.append(f"level {self.after.level} as before")
        parts.append(self._em())
        return "; ".join(part for part in parts if part)

    def _em(self) -> str:
        if not self.is_drawn:
            return "picked on purpose, so the estimate of EM does not read it"
        before, after = self.before.em, self.after.em
        if after is None:
            return "the estimate of EM waits for the rest of its drawing"
        now = f"{after.value:.1%} [{after.low or 0:.1%}, {after.high or 0:.1%}]"
        return f"EM of delivered answers is {now}" + (f", before {before.value:.1%}" if before is not None else "")


def _pending(before: LabelEffect, after: LabelEffect) -> str:
    if before.n_pending == after.n_pending:
        return f"{after.n_pending:,} disagreements without a label, as before"
    return f"{before.n_pending:,} → {after.n_pending:,} disagreements without a label, each of which counts as lost"


def _missing(before: LabelEffect, after: LabelEffect) -> str:
    def shown(n: int | None) -> str:
        return "no number of" if n is None else f"{n:,}"

    if before.n_missing is None and after.n_missing is None:
        return "no next level in reach, as before"
    if before.n_missing == after.n_missing:
        return f"{shown(after.n_missing)} audits to the next level, as before"
    return f"{shown(before.n_missing)} → {shown(after.n_missing)} audits to the next level"
