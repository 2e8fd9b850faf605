"""Policies and rollouts: what is in force on each route, what was before, and what refits propose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from suffice.console.doors import Visitor
from suffice.console.exchange import Asked
from suffice.console.look import Look
from suffice.settings import Route
from suffice.store.advice import newest_arm, newest_proposal
from suffice.store.advice_events import ArmWorth, Proposed
from suffice.store.control_events import PolicyPublished
from suffice.store.in_force import InForce, decisions_of, read_decided
from suffice.types import Publication

MOST_PUBLICATIONS: Final = 20  # of a route
MOST_DECISIONS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One publication."""

    at_s: float
    publication: Publication
    in_force: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePolicy:
    """One route."""

    route: str
    mode: str
    owned: str  # the name of the policy that its owner wrote down; "": the control loop decides
    level: int  # in force
    paused: str  # why; "": it is not
    published: tuple[Published, ...]  # the latest first
    proposal: Proposed | None  # the newest version of a refit, in force nowhere by itself
    arm: ArmWorth | None  # the newest of the tuner, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """All routes."""

    routes: tuple[RoutePolicy, ...]


def policies(look: Look, _asked: Asked, _visitor: Visitor) -> Policies:
    """What is in force where. Raises StoreError."""
    decided = read_decided(look.connection)
    return Policies(
        routes=tuple(
            _of(look, name, route, decided.of(name))
            for name, route in look.settings.routes.items()
            if route.mode != "off"
        )
    )


def _of(look: Look, name: str, route: Route, held: InForce) -> RoutePolicy:
    now = held.publication
    published = [
        Published(
            at_s=stored.at_s,
            publication=stored.event.publication,
            in_force=now is not None and stored.event.publication.number == now.number,
        )
        for stored in decisions_of(look.connection, name, MOST_DECISIONS)
        if isinstance(stored.event, PolicyPublished)
    ]
    return RoutePolicy(
        route=name,
        mode=route.mode,
        owned=str(route.policy.get("policy", "")),
        level=held.level,
        paused=held.pause.reason if held.pause is not None else "",
        published=tuple(published[:MOST_PUBLICATIONS]),
        proposal=newest_proposal(look.connection, name),
        arm=newest_arm(look.connection, name),
    )
