"""Prints the summaries of routes: three lines each, or one each if there are many."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from suffice.cli.shell import wrapped
from suffice.report.sentences import ALARMING, NOTHING_TO_DO, RouteSummary
from suffice.sanitize import printable

MANY_ROUTES: Final = 20  # above it, each route has one line


def summary_lines(summaries: Iterable[RouteSummary], *, now_s: float, width: int) -> list[tuple[str, bool]]:
    """Return printed lines, the worst route first, each with whether it is loud."""
    ranked = sorted(summaries, key=lambda one: (*(-part for part in one.urgency), one.route))
    if len(ranked) > MANY_ROUTES:
        names = min(24, max(len(_name(one)) for one in ranked))
        return [(_one_line(one, names, width), one.state in ALARMING) for one in ranked]
    lines = list[tuple[str, bool]]()
    for one in ranked:
        now = wrapped(f"{_name(one)}  {one.now}{_since(one, now_s)}", "", "  ", width=width)
        lines.append((now, one.state in ALARMING))
        lines.append((wrapped(f"  {one.effect}", "", "    ", width=width), False))
        lines.append((_next_line(one, width), False))
    return lines


def _next_line(one: RouteSummary, width: int) -> str:
    if not one.command:
        return wrapped(f"  next: {one.next_step}", "", "    ", width=width)
    # The command is never cut; a shell takes the rest as a comment.
    line = f"  next: {one.command}  # {one.next_step}"
    return line if len(line) <= width else line[: max(width - 1, len(one.command) + 8)].rstrip(" #") + "…"


def _name(one: RouteSummary) -> str:
    return printable(one.route) or "(no route matched)"


def _one_line(one: RouteSummary, names: int, width: int) -> str:
    step = one.command or ("" if one.next_step == NOTHING_TO_DO else one.next_step)
    line = f"{_name(one)[:names]:<{names}} {one.state:<11} {one.brief}" + (f"  {step}" if step else "")
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def _since(one: RouteSummary, now_s: float) -> str:
    if one.since_s is None:
        return ""
    at, age_s = datetime.fromtimestamp(one.since_s, UTC), now_s - one.since_s
    form = "%H:%M UTC" if age_s < 86_400 else "%d %b" if age_s < 300 * 86_400 else "%d %b %Y"
    return f", since {at.strftime(form).lstrip('0')}"
