"""How a replay is told in words: numbers for people, headings of groups, and what the result says.

Table and page read from here, so both say the same. Pure; it knows the records of a result and
refuses to know terminals and HTML. The first line of a family and choice is its headline: nothing
is picked here, because picking on the numbers that are shown would be hindsight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from suffice.assurance.bounds import Interval
from suffice.replay.study.result import Choice, Family, PolicyResult, SetReport
from suffice.sanitize import printable

GROUPS: Final[tuple[tuple[Family, Choice | None, str], ...]] = (
    ("full", None, "Full runs"),
    ("ours", "frozen", "Ours, frozen"),
    ("ours", "hindsight", "Ours, hindsight"),
    ("ours", "fixed", "Ours, as given"),
    ("published", "frozen", "Published rules, frozen"),
    ("published", "hindsight", "Published rules, hindsight"),
    ("published", "fixed", "Published rules, as published"),
    ("given", None, "As you gave them"),
    ("oracle", None, "Oracles"),
)
UNKNOWN: Final = "–"


def group_lines(lines: Sequence[PolicyResult]) -> list[tuple[str, list[PolicyResult]]]:
    """The lines under their headings, in the order of GROUPS; groups without lines are left out."""
    found = []
    for family, choice, heading in GROUPS:
        own = [line for line in lines if line.family == family and choice in (None, line.choice)]
        if own:
            found.append((heading, own))
    return found


def assign_letters(lines: Sequence[PolicyResult]) -> list[str]:
    """A letter for each line but the full runs, to find it in the figure; no letter from the 27th on."""
    free = iter("abcdefghijklmnopqrstuvwxyz")
    return ["" if line.family == "full" else next(free, "") for line in lines]


def describe_percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage without its sign: "54.2"; unknown and not a number: a dash."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    text = f"{100 * share:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")  # what rounds to zero has no sign
    return text.replace("-", "\u2212")


def interval(of: Interval | None) -> str:
    """Both ends in percent or points: "−0.2 to 1.4"."""
    return UNKNOWN if of is None else f"{describe_percent(of.low)} to {describe_percent(of.high)}"


def describe_points(share: float) -> str:
    """A difference of two shares in words: "0.6 points", "1 point"."""
    text = describe_percent(share).removesuffix(".0")
    return f"{text} point" if text in ("1", "\u22121") else f"{text} points"


def find_headline(report: SetReport, family: Family, choice: Choice) -> PolicyResult | None:
    """The first line of a family and choice; None: there is none."""
    return next((line for line in report.lines if (line.family, line.choice) == (family, choice)), None)


def describe_result(report: SetReport) -> list[str]:
    """What the result says, in sentences; the first one alone is the answer."""
    ours = find_headline(report, "ours", "frozen") or find_headline(report, "given", "fixed")
    published = find_headline(report, "published", "frozen")
    hindsight = find_headline(report, "published", "hindsight")
    target = describe_points(report.max_em_drop)
    said: list[str] = []
    main = ours or published
    if main is not None:
        name = "ours" if main.family == "ours" else printable(main.policy)
        said += [f"At most {target} of Exact Match: {_saves(name, main)}", _verdict(main, report.max_em_drop)]
        said += _splits(name, main, published)
    if published is not None and published is not main:
        said.append(
            "The published rule whose point was picked in the same way saves"
            f" {describe_percent(published.token_reduction)} %; "
            f"{_change(published)}{', which misses the target' if published.em_drop > report.max_em_drop else ''}."
        )
    if hindsight is not None:
        rule = printable(hindsight.note or hindsight.policy)
        said.append(
            f"In hindsight, picked on these very questions, a published rule ({rule}) saves "
            f"{describe_percent(hindsight.token_reduction)} %. Nobody could have known it beforehand;"
            " it stands here to compare."
        )
    if main is not None:
        said += _probes(main)
    return [sentence.replace(" %", "\u00a0%") for sentence in said + _oracles(report)]


def _saves(name: str, line: PolicyResult) -> str:
    if line.token_reduction <= 0:
        return f"{name} saves nothing ({describe_percent(line.token_reduction)} % of the tokens); {_change(line)}."
    return f"{name} saves {describe_percent(line.token_reduction)} % of the tokens; {_change(line)}."


def _change(line: PolicyResult) -> str:
    """How Exact Match moves, with both values and the interval."""
    bounds = "" if line.em_drop_interval is None else f"; 95 %: {interval(line.em_drop_interval)}"
    ends = f"({describe_percent(line.full_em)} % to {describe_percent(line.em)} %{bounds})"
    if describe_percent(line.em_drop).strip("\u22120.") == "":
        return f"Exact Match stays the same {ends}"
    if line.em_drop < 0:
        return f"Exact Match rises by {describe_points(-line.em_drop)} {ends}"
    return f"Exact Match falls by {describe_points(line.em_drop)} {ends}"


def _verdict(line: PolicyResult, target: float) -> str:
    if line.em_drop > target:
        return f"That misses the target by {describe_points(line.em_drop - target)}."
    if line.em_drop_interval is None:
        return "That is within the target; there are too few questions for an interval."
    if line.em_drop_interval.high <= target:
        return "That is within the target, and so is the whole interval."
    return (
        f"That is within the target, but the interval reaches {describe_points(line.em_drop_interval.high)}: "
        "these questions are too few to rule out a miss."
    )


def _splits(name: str, line: PolicyResult, published: PolicyResult | None) -> list[str]:
    if line.miss_share is None:
        return []
    other = None if published is None or published is line else published.miss_share
    beside = "" if other is None else f" (the published rule: in {describe_percent(other, 0)} %)"
    share = describe_percent(line.miss_share, 0)
    split = "Tuned on a random half of the questions"
    return [f"{split}, {name} misses the target on the other half in {share} % of the splits{beside}."]


def _probes(line: PolicyResult) -> list[str]:
    probes = line.token_reduction_without_probes - line.token_reduction
    if not probes >= 0.0005:
        return []
    saved = describe_percent(line.token_reduction_without_probes)
    return [f"Probes cost {describe_points(probes)} of the saving; leaving them out it is {saved} %."]


def _oracles(report: SetReport) -> list[str]:
    said = []
    for line in report.lines:
        if line.family == "oracle":
            what = {
                "oracle_agree": "the first step that already holds the full run's answer",
                "oracle_correct": "the first step that holds a right answer",
            }.get(line.policy, printable(line.policy))
            said.append(f"An oracle that stops at {what} saves {describe_percent(line.token_reduction)} %.")
    return said
