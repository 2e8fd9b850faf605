"""What the control loop tells people, as rows of the log: nothing here is in force anywhere.

    RouteMonitored   accounts and forecasts of a route at one look
    AlertRaised      a limit will be crossed, as far as the forecast can tell

Keys are made of what was looked at: two workers that look at the same place write one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.assurance.outlook import Alert, Outlook


@dataclass(frozen=True, slots=True)
class RouteMonitored:
    """Accounts and forecasts of a route at one look."""

    kind: ClassVar[Literal["route_monitored"]] = "route_monitored"
    outlook: Outlook

    @property
    def key(self) -> str:
        """What may exist once: a look at a route after that many requests. Sorted by text they are in order."""
        return f"{self.outlook.route}:{self.outlook.epoch:06}:{self.outlook.at:012}"

    @property
    def episode_id(self) -> str | None:
        """None: it belongs to no episode."""
        return None

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.outlook.route


@dataclass(frozen=True, slots=True)
class AlertRaised:
    """A limit will be crossed, as far as the forecast can tell. It ends nothing: an alarm does."""

    kind: ClassVar[Literal["alert_raised"]] = "alert_raised"
    alert: Alert

    @property
    def key(self) -> str:
        """What may exist once: an alert of a kind at that place."""
        return f"{self.alert.route}:{self.alert.epoch:06}:{self.alert.at:012}:{self.alert.of}"

    @property
    def episode_id(self) -> str | None:
        """None: it belongs to no episode."""
        return None

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.alert.route
