"""What people say of answers, and what stopping does to it, as `suffice status` says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from suffice.assurance.estimate import IntervalEstimate
    from suffice.assurance.forecast import Outlook
    from suffice.assurance.satisfaction import SatisfactionEffect


def summarize_effect(one: Outlook | None) -> str:
    """What stopping does to satisfaction, in one line."""
    if one is None:
        return "not measured: no worker has looked at this route"
    said = one.satisfaction
    if said is None:
        return "not measured: no watched run was rated"
    if said.effect is None:
        return "not measured: needs rated audits beside rated stopped runs"
    return _effect(said, f"{one.confidence:.0%}") + _rates(said)


def liking_lines(one: Outlook) -> list[tuple[str, str]]:
    """Every measure: of the route with all that is known, of classes and versions in short."""
    sure, lines = f"{one.confidence:.0%}", list[tuple[str, str]]()
    for said in one.whole_likings:
        lines += _whole(said, sure)
        parts = [part for part in one.likings if part.measure == said.measure and part is not said]
        classes = [part for part in parts if part.query_class is not None]
        versions = [part for part in parts if part.version is not None]
        lines += [(f"    class {part.query_class or 'none'}", _part(part, sure)) for part in classes]
        lines += [(f"    {part.version or 'no version'}", _part(part, sure)) for part in versions]
    return lines


def _whole(said: SatisfactionEffect, sure: str) -> list[tuple[str, str]]:
    lines = []
    if said.full is None and said.stopped is None:
        lines.append((f"  {said.measure}", _shown(said.everybody, sure)))
    for runs, found in (("full", said.full), ("stopped", said.stopped)):
        if found is not None:
            lines.append((f"  {said.measure}, {runs}", _shown(found, sure)))
    if said.effect is not None:
        lines.append((f"  {said.measure}, effect", _effect(said, sure) + _rates(said)))
    if said.n_set_aside:
        lines.append((f"  {said.measure}", f"{said.n_set_aside:,} words set aside: one key speaks for 5% of the runs"))
    return lines


def _part(said: SatisfactionEffect, sure: str) -> str:
    if said.effect is not None:
        return f"effect {_effect(said, sure)}"
    return _shown(said.everybody, sure)


def _effect(said: SatisfactionEffect, sure: str) -> str:
    effect = said.effect
    assert effect is not None
    up = effect.low is not None and effect.low > 0
    down = effect.high is not None and effect.high < 0
    worse = (down and said.better == "higher") or (up and said.better == "lower")
    verdict = "worse where stopped" if worse else "better where stopped" if up or down else "no difference is proven"
    return f"{_shown(effect, sure, sign=True, unit='pair')}: {verdict}"


def _rates(said: SatisfactionEffect) -> str:
    if said.rated_audits is None or said.rated_stopped is None:
        return ""
    return f" (rated: {said.rated_audits:.1%} of audits, {said.rated_stopped:.1%} of stopped runs)"


def _shown(one: IntervalEstimate | None, sure: str, *, sign: bool = False, unit: str = "") -> str:
    if one is None:
        return "not measured"
    from suffice.sanitize import plural

    form = "+.3f" if sign else ".3f"
    between = "" if one.low is None or one.high is None else f" [{one.low:{form}}, {one.high:{form}}] at {sure}"
    note = f" ({one.note})" if one.note else ""
    return f"{one.value:{form}}{between}, {plural(one.n, unit) if unit else f'n={one.n:,}'}{note}"
