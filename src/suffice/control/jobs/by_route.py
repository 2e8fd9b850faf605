"""A job that looks at one route after the other: each does its work alone, and one that fails is left for a while.

Knows which routes are due and what a failure may say; refuses to know what is done for a route.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from suffice.control.jobs.base import JobReport, JobWriter, LeaseLost
from suffice.control.jobs.comparing import ComparisonJob
from suffice.control.jobs.rows import LONGEST_REST_S, LOOK_BACK, why_of
from suffice.errors import StoreError
from suffice.settings import Route
from suffice.store.database.views import LogReader, open_reader
from suffice.store.routes.in_force import InForce, read_decided
from suffice.store.routes.windows import last_place, place_before
from suffice.telemetry import LOG


@dataclass(slots=True, kw_only=True)
class ByRoute(ComparisonJob, ABC):
    """Proposes something for each route that is due."""

    rests_s: ClassVar[float]  # between two looks at a route
    failing: ClassVar[str] = "nothing proposed"  # what becomes of a route whose work fails

    name: str
    _rests: dict[str, float] = field(default_factory=dict)  # routes that are left alone until then, monotonic

    @abstractmethod
    def concerns(self, route: Route) -> bool:
        """Is there anything to do for such a route?"""

    @abstractmethod
    def propose(
        self, name: str, route: Route, held: InForce, connection: LogReader, desk: JobWriter, until: int
    ) -> str | None:
        """Do a route's work on the log up to `until`; what was proposed, or "". None: there was nothing to look at."""

    def forget(self) -> None:
        """Ask about every route anew."""
        self._rests.clear()

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        """Look at what is due. Raises LeaseLost and StoreError."""
        now_s = self.monotonic_s()
        routes = {
            name: route
            for name, route in self.settings.routes.items()
            if self.concerns(route) and self._rests.get(name, now_s) <= now_s
        }
        if not routes or not self.path.is_file():
            return ()
        reports = list[JobReport | None]()
        with open_reader(self.path) as connection:
            decided = read_decided(connection)
            for name, route in routes.items():
                self._rests[name] = now_s + self.rests_s
                reports.append(self._alone(name, route, decided.of(name), connection, desk))
        return [report for report in reports if report is not None]

    def _alone(
        self, name: str, route: Route, held: InForce, connection: LogReader, desk: JobWriter
    ) -> JobReport | None:
        """Do a route's work; one that fails is left alone for a while."""
        until = last_place(connection)
        try:
            with desk.timed(name):
                said = self.propose(name, route, held, connection, desk, until)
        except (LeaseLost, StoreError):
            raise
        except Exception as error:  # noqa: BLE001 - one route's trouble is not the others'
            why = why_of(error)
            self._rests[name] = self.monotonic_s() + LONGEST_REST_S
            LOG.error("%s: route %s is left alone for a while: %s", self.name, name, why)
            LOG.debug("the same, with its traceback", exc_info=True)
            return JobReport(said=f"{self.failing}: {why}", route=name, ok=False, read_to_seq=until)
        return None if said is None else JobReport(said=said, route=name, read_to_seq=until)


def since(name: str, held: InForce, connection: LogReader) -> int:
    """Where the runs of a route begin that count: what came before the epoch is of another world."""
    looked_back = place_before(connection, name, LOOK_BACK)
    return looked_back if held.epoch is None else max(held.epoch.since_seq, looked_back)
