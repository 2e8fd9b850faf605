"""Loads policies, signals, scorers, segmenters and upstream drivers of other packages, by entry points.

A plug-in never overrides an existing name. One that fails to load is reported and left out.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

from suffice.episode.chain_reader import SEGMENTERS
from suffice.policy.base import POLICIES
from suffice.policy.parameters import parameters_of
from suffice.scoring.base import SCORERS
from suffice.settings import Effort, Steps
from suffice.signals.base import ALWAYS_FILLED, FOLDS, resolve_needs
from suffice.types import SIGNAL_FIELDS, Step
from suffice.upstream.drivers import DRIVERS, DriverFacts

_NAME = re.compile(r"[a-z][a-z0-9.-]{0,63}")
_FIELD = re.compile(r"[a-z][a-z0-9_.-]{0,63}")


class Unfit(Exception):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    group: str  # "suffice.policies" …
    name: str  # as settings name it
    package: str  # name and version of the distribution; "": unknown
    problem: str | None  # why it was left out; None: it was registered

    def warning(self) -> str:
        return f"plug-in {self.name!r} in {self.group} of {self.package or 'unknown'}: left out: {self.problem}"


@cache
def load_plugins() -> tuple[Plugin, ...]:
    """Register every installed plug-in, once per process, before settings are read. Never raises."""
    return register_all(point for group in GROUPS for point in entry_points(group=group))


def register_all(points: Iterable[EntryPoint]) -> tuple[Plugin, ...]:
    order = list(GROUPS)
    known = sorted((p for p in points if p.group in GROUPS), key=lambda p: (order.index(p.group), p.name, p.value))
    return tuple(_load(point) for point in known)


def _load(point: EntryPoint) -> Plugin:
    problem, (table, check) = None, GROUPS[point.group]
    try:
        if not _NAME.fullmatch(point.name):
            raise Unfit("a name is lower case: a letter, then letters, digits, dots and hyphens, 64 at most")
        if point.name in table:
            raise Unfit(f"the name is taken; taken are {', '.join(sorted(table))}")
        loaded = point.load()
        check(point.name, loaded)
        table[point.name] = loaded
    except Unfit as error:
        problem = str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - code of others may do anything at import
        problem = f"{type(error).__name__}: {error}"
    package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return Plugin(group=point.group, name=point.name, package=package, problem=problem)


def _check_signal(_: str, factory: Any) -> None:
    """Check that a fold can be built, fills only new fields, and accepts an empty step."""
    fold = factory()
    fields = tuple(fold.fields)
    if not fields or not all(isinstance(field, str) and _FIELD.fullmatch(field) for field in fields):
        raise Unfit(f"fields: got {fields!r:.200}; need at least one name in lower case")
    taken = {*SIGNAL_FIELDS, *ALWAYS_FILLED, "values"}.intersection(fields)
    if taken:
        raise Unfit(f"fields: {', '.join(sorted(taken))} exist; a fold of another package fills fields of its own")
    fold.update(Step(index=1, tokens=0, answer=None, answer_source=None))
    if tuple(fold.values()) != fields:
        raise Unfit(f"values: got {tuple(fold.values())!r:.200}; need one for each of the fields, in their order")
    SIGNAL_FIELDS.update(fields)


def _check_scorer(name: str, factory: Any) -> None:
    if any(parameter.default is parameter.empty for parameter in inspect.signature(factory).parameters.values()):
        return  # its parameters are needed to try it; reading settings does that
    scorer = factory()
    if scorer.name != name:
        raise Unfit(f"name: the scorer calls itself {scorer.name!r:.80}; its entry point must say the same")
    scorer.extract("")
    scorer.normalise("")
    scorer.match(None, "")


def _check_segmenter(_: str, factory: Any) -> None:
    segmenter = factory(Steps())
    segmenter.feed("So", 1)
    if segmenter.thought != "So":
        raise Unfit(f"thought: got {segmenter.thought!r:.80} after 'So' was fed; need all that was fed, unchanged")
    segmenter.close()


def _check_driver(_: str, facts: Any) -> None:
    if not isinstance(facts, DriverFacts):
        raise Unfit(f"got {type(facts).__name__}; need a DriverFacts of suffice.upstream.drivers")
    results = [facts.effort(level) for level in get_args(Effort)]
    if facts.budget is not None:
        results.append(facts.budget(16, "\n"))
    if not all(fields is None or isinstance(fields, Mapping) for fields in results):
        raise Unfit("effort and budget: need functions that give a mapping of fields, or None")


def _check_policy(name: str, policy: Any) -> None:
    """Check for a dataclass like those of `suffice.policy.rules`, under its own name, that needs only known folds."""
    if not (isinstance(policy, type) and dataclasses.is_dataclass(policy)):
        raise Unfit("need a class that is a frozen dataclass")
    if getattr(policy, "name", None) != name:
        raise Unfit(f"name: the policy calls itself {getattr(policy, 'name', None)!r:.80}; its entry point must agree")
    for method in ("decide", "needs"):
        if not hasattr(policy, method):
            raise Unfit(f"{method}: missing; see suffice.policy.protocol.Policy")
    if not any(parameter.required for parameter in parameters_of(policy)):
        built: Any = policy()
        resolve_needs(tuple(built.needs))


# By entry point group: the table, and a check that raises for an unfit object. Policies come last because they name
# signals.
GROUPS: Mapping[str, tuple[dict[str, Any], Callable[[str, Any], None]]] = {
    "suffice.signals": (FOLDS, _check_signal),
    "suffice.scorers": (SCORERS, _check_scorer),
    "suffice.segmenters": (SEGMENTERS, _check_segmenter),
    "suffice.drivers": (DRIVERS, _check_driver),
    "suffice.policies": (POLICIES, _check_policy),
}
