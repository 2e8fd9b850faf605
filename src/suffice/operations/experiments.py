"""What people do with experiments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from suffice.errors import BadRequest
from suffice.operations.fields import FormInput, find_later
from suffice.operations.operation import OperationContext, OperationResult, operation, raise_if_refused
from suffice.rollout.power import Power
from suffice.rollout.results import summarize_arm
from suffice.settings.checks import known_names
from suffice.store.routes import experiments


def _names(view: Any) -> Iterable[tuple[str, str]]:
    return [(name, name) for name in view.settings.experiments]


def _find(by: OperationContext, name: str) -> None:
    if name not in by.settings.experiments:
        message = f"unknown experiment {name[:80]!r}; {known_names(by.settings.experiments)}"
        raise BadRequest(message, param="name", status=404)


@operation(
    "/experiments/start",
    "start an experiment, or give it its new weights",
    {"name": FormInput("as the settings have it", "choice", _names, required=True, find=_find)},
    title="Start an experiment of the settings",
    commands=("experiment start",),
    goes_to="/console/experiments",
)
def start_named_experiment(by: OperationContext, name: str) -> OperationResult:
    """Start experiment NAME, or change its weights.

    It starts as the settings define it now. A running one gets its new weights and share.
    """
    _find(by, name)
    by.services.check_experiment(by.settings, name)
    written = by.settings.experiments[name]
    started = raise_if_refused(
        experiments.start_experiment(by.writer, name, written, **by.signed), f"experiment {name} "
    )
    odds = ", ".join(f"{arm} {share:.1%}" for arm, share in started.experiment.odds().items())
    verb = "has new weights" if started.revision else "is started"
    text = f"Experiment {name} {verb}, run {started.experiment.run}: {odds}; running gateways follow within a second."
    if started.revision:
        return OperationResult(text, started)
    try:
        power = by.services.power_of(started.experiment)
    except Exception as error:  # noqa: BLE001 - it is started, whatever can be said of it
        return OperationResult(text, started, f"what it can find could not be estimated: {error}")
    return OperationResult(f"{text} {describe_power(power)}", {**msgspec.to_builtins(started), "power": power})


def describe_power(power: Power) -> str:
    return f"{power.sentence[0].upper()}{power.sentence[1:]}."


@operation(
    "/experiments/stop",
    "stop an experiment",
    {"name": FormInput("as the settings have it", required=True, find=find_later)},
    title="Stop an experiment",
    commands=("experiment stop",),
    goes_to="/console/experiments",
)
def stop_named_experiment(by: OperationContext, name: str) -> OperationResult:
    """Stop experiment NAME.

    Its requests are served by the route's own settings again. Its results are stored with the reason.
    """
    summary, problem = _conclusions(by, name)
    ended = experiments.stop_experiment(by.writer, name, **by.signed, summary=summary)
    result = raise_if_refused(ended, f"experiment {name[:80]} ", fields={"": "name"})
    return OperationResult(
        " ".join((f"Experiment {name} is stopped, run {result.run}.", *result.summary)), result, problem
    )


def _conclusions(by: OperationContext, name: str) -> tuple[tuple[str, ...], str]:
    """Return what a running experiment has shown, and why that cannot be read; "": it can."""
    held = experiments.read_experiments(by.writer.path)
    now = next((one for one in held if one.runs and one.experiment.name == name), None)
    if now is None or by.writer.rehearses:
        return (), ""
    try:
        result = replace(by.services.analyse(now), ended=True)
    except Exception as error:  # noqa: BLE001 - results must not keep a person from stopping it
        return (), f"what it showed could not be read: {error}"
    return tuple(sentence for arm in result.arms for sentence in summarize_arm(result, arm)), ""
