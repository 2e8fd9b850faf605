"""The guarantee of every route, from one read of the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from suffice.assurance.forecast import RouteForecast
from suffice.assurance.guarantee import WINDOW_RUNS, extractability_refusal
from suffice.assurance.runs import Tally
from suffice.review.route_guarantee import GuaranteeInputs, RouteGuarantee, guarantee_of
from suffice.rollout.experiment import RunningExperiment
from suffice.scoring.base import scorer_label
from suffice.settings import Route
from suffice.store.database.views import LAST_SEQ, LogReader, LogSource, extracted_answers, query_events, route_findings
from suffice.store.routes.deployments import DeploymentState, Holds, read_decided, read_holds
from suffice.store.routes.experiments import read_experiments
from suffice.store.routes.experiments import read_running_experiments as running_experiments
from suffice.store.routes.rollouts import read_rollouts
from suffice.store.routes.rollouts import read_running_rollouts as running_rollouts
from suffice.store.rows.watching import WatchLapse
from suffice.types import RouteFindings

MOST_LAPSES: Final = 1_000  # rows that are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Promises:
    decided: DeploymentState
    holds: Holds
    unwatched: Mapping[str, str]  # why nobody watches a route, as a gateway found
    beside: Mapping[str, tuple[str, ...]]  # running experiments and rollouts, by route
    now_s: float  # Unix time
    killed: bool
    examined: Mapping[str, tuple[int, RouteFindings]]  # the latest `suffice doctor --route` and its place in the log

    def refusal(self, connection: LogReader, name: str, route: Route, tally: Tally | None) -> str | None:
        """Return why a route must not act, by its latest full runs; None: it may. Raise StoreError."""
        examined, label = self.examined.get(name), scorer_label(route.scorer)
        if examined is not None and examined[1].scorer == label:
            return extractability_refusal(extracted(connection, name, route, self.examined), label)
        return extractability_refusal([] if tally is None else [one == "1" for one in tally.extracted], label)

    def of(
        self, name: str, route: Route, forecast: RouteForecast | None, *, setup: str | None, unreadable: bool = False
    ) -> RouteGuarantee:
        """Return the guarantee; `unreadable`: too few answers can be extracted, and the route must not act."""
        held = self.decided.of(name)
        return guarantee_of(
            GuaranteeInputs(
                name=name,
                settings=route,
                epoch=held.epoch,
                publication=held.publication,
                pause=held.pause,
                holding=self.holds.of(name).in_effect(self.now_s),
                setup=setup,
                killed=self.killed,
                unwatched=self.unwatched.get(name, ""),
                unreadable=unreadable,
                classes=audits_by_class(forecast),
                beside=self.beside.get(name, ()),
            )
        )


def read_promises(connection: LogReader, *, now_s: float, killed: bool) -> Promises:
    return Promises(
        decided=read_decided(connection),
        holds=read_holds(connection),
        unwatched=read_unwatched(connection),
        now_s=now_s,
        killed=killed,
        examined=route_findings(connection),
        beside=read_other_arms(
            running_experiments(read_experiments(connection)), running_rollouts(read_rollouts(connection))
        ),
    )


def read_unwatched(connection: LogReader) -> dict[str, str]:
    """Return why nobody watches a route, by the latest row about it."""
    latest, wanted = dict[str, WatchLapse](), ("watch_changed", 0, LAST_SEQ, MOST_LAPSES)
    for stored in query_events(connection, "newest_of_rare_kind", wanted):
        if isinstance(stored.event, WatchLapse):
            latest.setdefault(stored.event.route, stored.event)
    return {name: one.reason for name, one in latest.items() if one.lapsed}


def read_other_arms(experiments: Iterable[RunningExperiment], rollouts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    arms = [(route, f"experiment {one.name}") for one in experiments for route in one.routes]
    arms += [(route, "a rollout") for route in rollouts]
    return {name: tuple(what for route, what in arms if route == name) for name, _ in arms}


def audits_by_class(forecast: RouteForecast | None) -> dict[str, int]:
    return {} if forecast is None else {part.query_class or "": part.n_audits for part in forecast.classes}


def extracted(
    path: LogSource, name: str, route: Route, examined: Mapping[str, tuple[int, RouteFindings]]
) -> tuple[bool, ...]:
    """Return whether the answers of the route's latest full runs could be extracted, the last examination's runs first.

    Earlier logged runs do not count: another scorer may have read them.
    """
    seq, findings = examined.get(name, (0, None))
    if findings is None or findings.scorer != scorer_label(route.scorer):
        return tuple(extracted_answers(path, name, limit=WINDOW_RUNS))
    seen = [True] * findings.n_extractable + [False] * (findings.n_runs - findings.n_extractable)
    return (*seen, *extracted_answers(path, name, since_seq=seq, limit=WINDOW_RUNS))
