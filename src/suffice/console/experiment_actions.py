"""Creates an experiment in four steps: what is expected, the arms, who takes part, and when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, get_args

import msgspec

from suffice.console.action_form import ActionForm
from suffice.console.context import ViewContext
from suffice.errors import BadRequest, ConfigError
from suffice.operations.experiments import describe_power
from suffice.operations.fields import ROUTE, FormInput
from suffice.operations.operation import OperationResult, operation, raise_if_refused
from suffice.rollout.results import METRICS
from suffice.settings import ExperimentUnit, Settings, parse_settings
from suffice.store.routes.experiments import start_experiment

ARM_KINDS: Final[Mapping[str, str]] = {
    "as_now": "the route as it is now",
    "full": "the full run: nothing is stopped",
    "level": "at most this certified level",
    "effort": "this reasoning effort, sent with the call",
    "budget_tokens": "at most so many reasoning tokens",
}
# Where a problem of the settings' checks stands in the form.
_PLACES: Final = {
    "routes": "route",
    "primary": "primary",
    "margins": "margin",
    "unit": "unit",
    "layer": "unit",
    "share": "share",
    "planned_units": "planned_units",
    "days": "days",
    "arms.control": "control_value",
    "arms.treatment": "treatment_value",
}


def _arm(form: ActionForm, which: str, kind: str, value: str | None) -> dict[str, Any]:
    if kind == "as_now":
        return {}
    if kind == "full":
        return {"full": True}
    if not value:
        raise BadRequest(f"{which}_value: {ARM_KINDS[kind]} needs a value", param=f"{which}_value")
    return {kind: value if kind == "effort" else form.count(f"{which}_value")}


def _table(form: ActionForm, given: Mapping[str, Any]) -> dict[str, Any]:
    arms = {
        which: _arm(form, which, given[f"{which}_arm"], given[f"{which}_value"]) for which in ("control", "treatment")
    }
    table: dict[str, Any] = {
        "routes": [given["route"]],
        "hypothesis": given["hypothesis"],
        "arms": arms,
        "control": "control",
        "primary": given["primary"] or "tokens",
        "unit": given["unit"] or "request",
        "end_when_worse": given["end_when_worse"],
    }
    margin = given["margin"]
    optional = {name: given[name] for name in ("share", "days", "planned_units")}
    optional["margins"] = None if margin is None else {"em": margin / 100}
    return table | {name: value for name, value in optional.items() if value is not None}


def _with_experiment(form: ActionForm, name: str, given: Mapping[str, Any]) -> Settings:
    """The settings with the experiment, checked as a file is. Raises BadRequest at the field that is wrong."""
    plain = msgspec.to_builtins(form.context.settings)
    if name in plain["experiments"]:
        message = f"name: {name!r} is in the settings, [experiments.{name}]; start that one, or take another name"
        raise BadRequest(message, param="name", status=409)
    try:
        settings = parse_settings({**plain, "experiments": {**plain["experiments"], name: _table(form, given)}})
        form.services.check_experiment(settings, name)
    except ConfigError as error:
        text = str(error).removeprefix(f"experiments.{name}.").removeprefix(f"experiments.{name}")
        place = next((field for start, field in _PLACES.items() if text.startswith(start)), None)
        raise BadRequest(text, param=place or "name", status=409, code="conflict") from None
    return settings


def _arm_kinds(_: ViewContext) -> Iterable[tuple[str, str]]:
    return ARM_KINDS.items()


def _metrics(view: ViewContext) -> Iterable[tuple[str, str]]:
    declared = (name for name, metric in view.settings.metrics.items() if metric.type != "category")
    return [(name, name) for name in (*METRICS, *declared)]


_VALUE: Final = FormInput("for a level, an effort or a budget")


@operation(
    "/experiments/create",
    "create an experiment and start it",
    {
        "name": FormInput("of the experiment", required=True, group="1. What you expect"),
        "hypothesis": FormInput("what you expect, in a sentence", "area", required=True),
        "primary": FormInput(
            "the metric that decides: tokens, em, latency, satisfaction, or one of the settings",
            "choice",
            _metrics,
            default="tokens",
        ),
        "margin": FormInput(
            "EM that may be lost at most, in points; the other arm is then tested for being no worse",
            "number",
            default="1",
            range=(0, 100),
        ),
        "control_arm": FormInput(
            f"what others are compared with: {', '.join(ARM_KINDS)}",
            "choice",
            _arm_kinds,
            default="as_now",
            allowed=tuple(ARM_KINDS),
            group="2. Arms",
        ),
        "control_value": _VALUE,
        "treatment_arm": FormInput(
            f"what is tried: {', '.join(ARM_KINDS)}", "choice", _arm_kinds, default="level", allowed=tuple(ARM_KINDS)
        ),
        "treatment_value": _VALUE,
        "route": replace(ROUTE, hint="whose requests take part", group="3. Which units take part"),
        "unit": FormInput(
            "what always gets the same arm: request, conversation, user or tenant",
            "choice",
            lambda _: [(unit, unit) for unit in get_args(ExperimentUnit)],
            default="request",
        ),
        "share": FormInput(
            "of the units that take part, a fraction; the rest is served as now", "number", default="0.2"
        ),
        "planned_units": FormInput(
            "units at which intervals are to be tightest; they hold before and after it, too",
            "number",
            default="10000",
            least=0,
        ),
        "days": FormInput(
            "after which the worker ends it; empty: never", "number", default="14", group="4. When it ends"
        ),
        "end_when_worse": FormInput("true: the worker ends it once an arm is proved worse", "flag", default="true"),
    },
    title="Create an experiment",
    goes_to="/console/experiments",
)
def create_experiment(form: ActionForm, name: str, **given: Any) -> OperationResult:
    experiment = _with_experiment(form, name, given).experiments[name]
    run = start_experiment(form.writer, name, experiment, author=form.author, reason=form.reason)
    started = raise_if_refused(run, f"experiment {name} ").experiment
    arms = ", ".join(f"{arm} {odds:.0%}" for arm, odds in started.odds().items())
    days = f"after {started.days:g} days" if started.days else "when somebody stops it"
    worse = ", or once an arm is proved worse" if started.end_when_worse else ""
    sentence = f"Experiment {name}: {arms} of {started.share:.0%} of the units; it ends {days}{worse}."
    return OperationResult(f"{sentence} {describe_power(form.services.power_of(started))}")
