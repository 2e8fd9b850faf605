"""An action of a person: declared once, and made into a form of the console, a path of the API and a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from suffice.errors import BadRequest
from suffice.operations.fields import REASON, FormInput
from suffice.rollout.experiment import RunningExperiment
from suffice.rollout.power import Power
from suffice.rollout.results import ExperimentResult
from suffice.settings import ConsoleRole, Settings
from suffice.store.database.decisions import Decisions
from suffice.store.routes.experiments import ExperimentRun
from suffice.store.routes.rollouts import RolloutRun

NO_FIELDS: Final[Mapping[str, str]] = {}
T = TypeVar("T")


class OperationServices(Protocol):
    """What is above this package and an action needs; the fields are those of `ConsoleServices`."""

    @property
    def setup_of(self) -> Callable[[str], str]: ...
    @property
    def check_experiment(self) -> Callable[[Settings, str], None]: ...
    @property
    def power_of(self) -> Callable[[RunningExperiment], Power]: ...
    @property
    def analyse(self) -> Callable[[ExperimentRun], ExperimentResult]: ...
    @property
    def take_back(self) -> Callable[[str, str, str], RolloutRun | str]: ...


class OperationContext(Protocol):
    """Somebody who decides something, why, and what the decision is about."""

    @property
    def settings(self) -> Settings: ...
    @property
    def writer(self) -> Decisions: ...
    @property
    def author(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def signed(self) -> dict[str, Any]: ...  # the author and the reason
    @property
    def now_s(self) -> float: ...  # Unix time

    @property
    def services(self) -> OperationServices: ...


@dataclass(frozen=True, slots=True)
class OperationResult:
    message: str  # one sentence
    result: Any = None  # what a command prints as JSON
    warning: str = ""  # a sentence: what could not be done beside it; "": nothing
    goes_to: str = ""  # the next page; "": that of the operation
    secret: str = ""  # to be shown once; "": none
    rows: tuple[Any, ...] = ()  # of a preview, which are no rows of the log
    effect: str = ""  # of a preview


@dataclass(frozen=True, slots=True)
class OperationSpec:
    path: str  # below /console and below /api
    summary: str
    fields: Mapping[str, FormInput]
    title: str  # of its form; "": a page has one of its own
    commands: tuple[str, ...]  # of the command line that it stands for
    goes_to: str  # the next page; "": the previous one
    needs: ConsoleRole
    by_tenant: bool  # as of `ConsoleEndpoint`
    do: Callable[..., OperationResult]  # of a context and the fields; its docstring is the help of the command


def operation(
    path: str,
    summary: str,
    fields: Mapping[str, FormInput],
    *,
    title: str = "",
    commands: tuple[str, ...] = (),
    goes_to: str = "",
    needs: ConsoleRole = "operator",
    by_tenant: bool = False,
    asks_why: bool = True,
) -> Callable[[Callable[..., OperationResult]], OperationSpec]:
    """Make an action of the function that does it. One with a form asks for a reason, too."""
    if title and asks_why:
        fields = {**fields, "reason": fields.get("reason", REASON)}
    return lambda do: OperationSpec(path, summary, fields, title, commands, goes_to, needs, by_tenant, do)


def raise_if_refused(result: T | str, where: str = "", *, fields: Mapping[str, str] = NO_FIELDS) -> T:
    """Return the result. Raises BadRequest if it is a sentence that explains a refusal.

    fields  the field that is wrong, by how the sentence begins
    """
    if isinstance(result, str):
        field = next((field for start, field in fields.items() if result.startswith(start)), None)
        raise BadRequest(f"{where}{result}", param=field, status=409, code="conflict")
    return result
