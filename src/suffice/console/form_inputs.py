"""What a form asks for: one input for each field's name, wherever it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from suffice.console.auth import ROLES
from suffice.console.context import ViewContext, ViewRecord
from suffice.console.experiment_actions import ARM_KINDS
from suffice.review.holds import DECISIONS, OverrideKind
from suffice.rollout.results import METRICS
from suffice.settings import AlertKind, ExperimentUnit
from suffice.store.people.alert_rules import MEASURES, latest_rules
from suffice.store.people.keys import live_keys, valid_keys
from suffice.store.routes import rollouts

Choices = Callable[[ViewContext], Iterable[tuple[str, str]]]  # value and label
InputKind = Literal["text", "area", "number", "choice", "flag"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormInput:
    kind: InputKind = "text"
    choices: Choices | None = None
    required: bool = False
    default: str = ""
    group: str = ""  # heading of the fieldset; "": the one before


class FormField(ViewRecord, frozen=True):
    """One field of a form, as it is shown."""

    name: str
    label: str
    hint: str
    kind: InputKind
    choices: tuple[tuple[str, str], ...]
    required: bool
    value: str
    problem: str  # why the value was refused; "": it was not
    group: str


def _these(*values: str) -> Choices:
    return lambda _: [(one, one.replace("_", " ")) for one in values]


def _named(values: Mapping[Any, str]) -> Choices:
    return lambda _: values.items()


def _routes(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [(name, name) for name in view.settings.routes]


def _any_route(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [("", "all routes"), *_routes(view)]


def _people(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [(one.name, f"{one.name} ({one.role})") for one in view.visit.context.auth.people()]


def _keys(view: ViewContext) -> Iterable[tuple[str, str]]:
    return dict.fromkeys((one.name, one.name) for one in live_keys(valid_keys(view.connection), view.now_s))


def _experiments(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [(name, name) for name in view.settings.experiments]


def _metrics(view: ViewContext) -> Iterable[tuple[str, str]]:
    declared = (name for name, metric in view.settings.metrics.items() if metric.type != "category")
    return [(name, name) for name in (*METRICS, *declared)]


def _rules(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [("", "none: a plain test"), *((one.rule, one.rule) for one in latest_rules(view.connection))]


_REQUIRED_TEXT: Final = FormInput(required=True)
INPUTS: Final[Mapping[str, FormInput]] = {
    "route": FormInput(kind="choice", choices=_routes, required=True),
    "any_route": FormInput(kind="choice", choices=_any_route),
    "reason": FormInput(kind="area", required=True),
    "summary": FormInput(kind="area", required=True),
    "name": _REQUIRED_TEXT,
    "experiment": FormInput(kind="choice", choices=_experiments, required=True),
    "person": FormInput(kind="choice", choices=_people, required=True),
    "new_person": _REQUIRED_TEXT,
    "role": FormInput(kind="choice", choices=_these(*ROLES), default="reviewer"),
    "key": FormInput(kind="choice", choices=_keys, required=True),
    "new_key": _REQUIRED_TEXT,
    "decision": FormInput(kind="choice", choices=_these(*DECISIONS), required=True),
    "move": FormInput(kind="choice", choices=_these(*rollouts.STEPS), required=True),
    "kind": FormInput(kind="choice", choices=_these(*get_args(OverrideKind)), required=True),
    "alert_kind": FormInput(
        kind="choice", choices=lambda _: [("", "every kind"), *((k, k.replace("_", " ")) for k in get_args(AlertKind))]
    ),
    "measure": FormInput(kind="choice", choices=_named(MEASURES), required=True),
    "side": FormInput(kind="choice", choices=_these("above", "below"), default="above"),
    "rule": FormInput(kind="choice", choices=_rules),
    "new_rule": _REQUIRED_TEXT,
    "limit": FormInput(kind="number", required=True),
    "window_hours": FormInput(kind="number", default="24"),
    "least_requests": FormInput(kind="number", default="100"),
    "enabled": FormInput(kind="flag", default="true"),
    "pauses": FormInput(kind="flag"),
    "level": FormInput(kind="number"),
    "publication": FormInput(kind="number"),
    "number": FormInput(kind="number", required=True),
    "max_em_drop": FormInput(kind="number"),
    "days": FormInput(kind="number", default="30"),
    "hours": FormInput(kind="number", default="8"),
    "overlap_hours": FormInput(kind="number", default="24"),
    "episode": _REQUIRED_TEXT,
    "incident": _REQUIRED_TEXT,
    "address": _REQUIRED_TEXT,
    "key_days": FormInput(kind="number"),
    "new_experiment": FormInput(required=True, group="1. What you expect"),
    "hypothesis": FormInput(kind="area", required=True),
    "primary": FormInput(kind="choice", choices=_metrics, default="tokens"),
    "margin": FormInput(kind="number", default="1"),
    "control_arm": FormInput(kind="choice", choices=_named(ARM_KINDS), default="as_now", group="2. Arms"),
    "treatment_arm": FormInput(kind="choice", choices=_named(ARM_KINDS), default="level"),
    "experiment_route": FormInput(kind="choice", choices=_routes, required=True, group="3. Which units take part"),
    "unit": FormInput(kind="choice", choices=_these(*get_args(ExperimentUnit)), default="request"),
    "share": FormInput(kind="number", default="0.2"),
    "experiment_days": FormInput(kind="number", default="14", group="4. When it ends"),
    "end_when_worse": FormInput(kind="flag", default="true"),
}
PLAIN: Final = FormInput()
