"""What people hold on a route, as its requests get it: a pinned publication, a cap, full runs for a while.

    RouteHolds (log), now ──▶ InEffect ──▶ the publication to be served, the route's ceilings, or nothing acts

Pure. An override ends when its time is over, whoever looks: no worker takes part. What is certified bounds what a pin
can bring back: of an ended epoch, on other settings or for a looser promise it is void, and all runs in full.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from suffice.gateway.route import BuiltRoute
from suffice.review.override import InEffect
from suffice.store.routes.in_force import InForce
from suffice.types import Pause, Publication


def pinned(held: InForce, holding: InEffect) -> InForce:
    """What is in force where a person has pinned an earlier publication.

    It never reaches further than the control loop does now: where nothing is certified any more nothing is brought
    back, and the same models are served up to the level that is certified today.
    """
    pin, made = holding.pin, held.publication
    if pin is None or pin.pinned is None or made is None or not held.level:
        return held
    if pin.pinned.epoch != held.n_epochs:
        return replace(held, publication=replace(made, level=0, certified=False))
    return brought_back(held, made, pin.pinned)


def brought_back(held: InForce, made: Publication, told: Publication) -> InForce:
    """What is in force where an earlier publication is served in the place of the newest.

    made  the newest, which certifies something: what it holds back, the earlier one holds back too
    told  the earlier one, of the same epoch
    """
    level = min(told.level, made.level) if told.fit == made.fit else told.level
    classes = dict(told.classes)
    for name, most in made.classes:  # what the guard-rails hold today, they hold there too
        classes[name] = min(most, classes.get(name, most))
    return replace(
        held, publication=replace(told, level=level, share=made.share, classes=tuple(sorted(classes.items())))
    )


def promised(base: BuiltRoute, holding: InEffect) -> BuiltRoute:
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
