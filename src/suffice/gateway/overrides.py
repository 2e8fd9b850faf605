"""What people hold on a route, as its requests get it: a pinned publication, a cap, full runs for a while.

    RouteHolds (log), now ──▶ InEffect ──▶ the publication to be served, the route's ceilings, or nothing acts

Pure. An override ends when its time is over, whoever looks: no worker takes part. What is certified bounds what a pin
can bring back: of an ended epoch, on other settings or for a looser promise it is void, and all runs in full.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from suffice.gateway.route import BuiltRoute
from suffice.review import route_guarantee
from suffice.review.holds import InEffect
from suffice.review.route_guarantee import effective_publication
from suffice.store.routes.in_force import InForce
from suffice.types import Pause, Publication


def pinned(held: InForce, holding: InEffect) -> InForce:
    """What is in force where a person has pinned an earlier publication."""
    if held.pause is not None or held.publication is None:
        return held
    made = effective_publication(held.publication, held.n_epochs, holding)
    return held if made is held.publication else replace(held, publication=made)


def apply_pinned_publication(held: InForce, made: Publication, told: Publication) -> InForce:
    """What is in force where an earlier publication is served in the place of the newest."""
    return replace(held, publication=route_guarantee.pin_publication(made, told))


def apply_budget(base: BuiltRoute, holding: InEffect) -> BuiltRoute:
    """The route under the smaller of its own EM budget and the one that a person holds it to."""
    budget = holding.budget(base.settings.max_em_drop)
    if budget == base.settings.max_em_drop:
        return base
    return replace(base, settings=msgspec.structs.replace(base.settings, max_em_drop=budget))


def resting(holding: InEffect, pause: Pause | None) -> InEffect:
    """What people hold on a route whose policy its owner wrote: a pause has no certificate there to take away."""
    if pause is None or holding.observe is not None:
        return holding
    return replace(holding, observe=f"paused by {pause.author}: {pause.reason}")
