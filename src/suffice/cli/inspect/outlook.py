"""What the job `monitor` saw of a route, and the whole promise, as `suffice status` says them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from suffice.assurance.estimate import IntervalEstimate
    from suffice.assurance.forecast import Forecast
    from suffice.assurance.ledger import Account
    from suffice.assurance.route_forecast import Outlook
    from suffice.store.rows.records import ArmWorth, ProposedVersion


def outlook_lines(one: Outlook | None) -> list[tuple[str, str]]:
    """What a reader sees; every interval may be read at any moment, as often as one likes."""
    if one is None:
        return [("watched", "not yet: no worker has looked at this route; see suffice worker")]
    from suffice.cli.inspect.liking import liking_lines

    lines = [("watched", _since(one))]
    if one.whole is not None:
        sure = f"{one.confidence:.0%}"
        lines += _account(one.whole, sure)
        lines += [(f"  class {part.query_class or 'none'}", _part(part, sure)) for part in one.classes]
        lines += [(f"  {part.version or 'no version'}", _part(part, sure)) for part in one.versions]
    lines += liking_lines(one)
    return lines + _forecasts(one)


def proposal_lines(one: ProposedVersion | None) -> list[tuple[str, str]]:
    """The newest version that a refit proposed; [] where there is none."""
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
        from suffice.sanitize import plural

        seen = plural(one.at, "request")
        return f"{seen}; accounts begin behind the first hundred runs, which say what a run can cost"
    return f"requests {one.since:,} to {one.at:,} of epoch {one.epoch}; intervals hold at every look"


def _account(one: Account, sure: str) -> list[tuple[str, str]]:
    def tokens(value: float) -> str:
        return f"{value:,.1f}"

    cut = f"; {one.n_cut:,} runs with more tokens than the account allows for count as that" if one.n_cut else ""
    return [
        ("  EM, full runs", _shown(one.em_full, _rate, sure)),
        ("  EM, stopped runs", _shown(one.em_stopped, _rate, sure)),
        ("  EM drop", _shown(one.em_drop, _points, sure)),
        ("  tokens, full run", _shown(one.tokens_full, tokens, sure)),
        ("  tokens, live run", _shown(one.tokens_live, tokens, sure)),
        ("  stops on audits save", _shown(one.saving, _rate, sure) + cut),
    ]


def _part(one: Account, sure: str) -> str:
    if not one.known:
        return f"unknown: {one.n_audits:,} audits of {one.n_runs:,} runs"
    return f"EM drop {_shown(one.em_drop, _points, sure)}; stops on its audits save {_shown(one.saving, _rate, sure)}"


def _forecasts(one: Outlook) -> list[tuple[str, str]]:
    told = [forecast for forecast in (one.drop, one.em) if forecast is not None]
    if not told:
        return [("forecast", "none yet: it takes 3,000 requests of an epoch, with something that stops")]
    return [("forecast", _forecast(forecast)) for forecast in told]


def _forecast(one: Forecast) -> str:
    if one.alert:
        return f"ALERT: {one.reason}"
    return one.reason + (" (in doubt: more audits would tell)" if one.doubtful else "")


def _shown(one: IntervalEstimate | None, show: Callable[[float], str], sure: str) -> str:
    if one is None:
        return "not measured"
    between = "" if one.low is None or one.high is None else f" [{show(one.low)}, {show(one.high)}] at {sure}"
    return f"{show(one.value)}{between}, n={one.n:,}" + (f" ({one.note})" if one.note else "")


def _rate(value: float) -> str:
    return f"{value:.1%}"


def _points(value: float) -> str:
    return f"{100 * value:+.2f} points"
