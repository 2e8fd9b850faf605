"""What the control loop tells people, as rows of the log: nothing here is in force anywhere.

    RouteMonitored   accounts and forecasts of a route at one look
    AlertRaised      a limit will be crossed, as far as the forecast can tell
    VersionProposed  a refit's version with its report card
    ArmProposed      an effort or a budget that is proved and worth it, or full runs again

Keys are made of what was looked at: two workers that look at the same place write one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.forecast import Alert, Outlook
from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True)
class RouteMonitored(OfNoEpisode):
    """Accounts and forecasts of a route at one look."""

    kind: ClassVar[Literal["route_monitored"]] = "route_monitored"
    outlook: Outlook

    @property
    def key(self) -> str:
        """What may exist once: a look at a route after that many requests. Sorted by text they are in order."""
        return f"{self.outlook.route}:{self.outlook.epoch:06}:{self.outlook.at:012}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.outlook.route


@dataclass(frozen=True, slots=True)
class AlertRaised(OfNoEpisode):
    """A limit will be crossed, as far as the forecast can tell. It ends nothing: an alarm does."""

    kind: ClassVar[Literal["alert_raised"]] = "alert_raised"
    alert: Alert

    @property
    def key(self) -> str:
        """What may exist once: an alert of a kind at that place."""
        return f"{self.alert.route}:{self.alert.epoch:06}:{self.alert.at:012}:{self.alert.of}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.alert.route


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedVersion:
    """What a refit found: a version that is in force nowhere, and what is known of it."""

    route: str
    read_to_seq: int  # place in the log that had been read up to
    address: str  # of the version, which is kept beside the log
    parent: str | None  # address of the version that was in force
    reason: str  # schedule, drift, by hand
    verdict: str  # against the parent: better, worse, inconclusive, first
    why: str
    n_runs: int  # that it was learned from
    saving: IntervalEstimate | None  # at the route's own EM budget, on prompts that its models have not seen
    drop: IntervalEstimate | None  # likewise
    lineage: dict[str, Any]  # as `learn.retrain` has it; Any, because each key has its own type
    card: dict[str, Any] | None  # as `learn.report_card` has it
    author: str


@dataclass(frozen=True, slots=True)
class VersionProposed(OfNoEpisode):
    """A refit's version with its report card. It takes effect nowhere by itself."""

    kind: ClassVar[Literal["version_proposed"]] = "version_proposed"
    proposal: ProposedVersion

    @property
    def key(self) -> str:
        """What may exist once: a route's proposal from the log up to that place."""
        return f"{self.proposal.route}:{self.proposal.read_to_seq:015}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.proposal.route


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmWorth:
    """What the tuner would put in force on a route, and what that stands on."""

    route: str
    arm: str  # as outcomes name it; "full": nothing but full runs is proved any more
    before: str  # what it takes the place of
    n_pairs: int  # audits that were asked twice with the route's arm
    reason: str
    log_e: float | None = None  # evidence against "it loses the budget or more"; None: full runs need none
    gain: float | None = None  # EM value by off-policy evaluation, a fraction
    gain_error: float | None = None  # standard error, for one look
    price: float | None = None  # EM that the tokens of a mean full run were worth
    read_to_seq: int = 0  # place in the log that had been read up to
    author: str = ""


@dataclass(frozen=True, slots=True)
class ArmProposed(OfNoEpisode):
    """An effort or a budget that is proved and worth it, or full runs again. It takes effect nowhere by itself."""

    kind: ClassVar[Literal["arm_proposed"]] = "arm_proposed"
    worth: ArmWorth

    @property
    def key(self) -> str:
        """What may exist once: a route's proposal from the log up to that place."""
        return f"{self.worth.route}:{self.worth.read_to_seq:015}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.worth.route
