"""How a route serves its owner's policy once the control loop has proved it: that very policy, or full runs.

    InForce (log) ──▶ serving_own ──▶ BuiltRoute.certified, for every request that the evidence speaks of

Pure. As with levels, a publication is taken at its word only where it fits the promise and the settings that run here,
and only for the very policy that it names. Knows publications and routes; refuses to know upstreams.
"""

from __future__ import annotations

from dataclasses import replace

from suffice.gateway.deployment import is_servable
from suffice.gateway.route import BuiltRoute
from suffice.store.routes.in_force import InForce
from suffice.store.routes.rollouts import own_version


def serving_own(base: BuiltRoute, held: InForce) -> BuiltRoute:
    """The route as it serves what is in force.

    base  the route as its settings have it, without any publication
    """
    waiting = replace(base, in_force=held, in_burst=held.epoch is not None and held.in_burst)
    made = held.publication
    if (
        made is None
        or not held.level
        or not is_servable(base, made)
        or made.version != own_version(base.settings).address
    ):
        return waiting
    return replace(waiting, certified=True)
