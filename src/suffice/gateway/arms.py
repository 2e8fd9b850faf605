"""How a route serves an effort or a budget that the control loop has published: that very arm, or full runs.

    InForce (log) ──▶ serving_arm ──▶ BuiltRoute.arm ──▶ episode.reasoning_budget, for one request

Pure. As with levels, a publication is taken at its word only where it fits the promise and the settings that run here;
whatever does not fit is level 0: everything runs in full. Knows publications and routes; refuses to know upstreams.
"""

from __future__ import annotations

from dataclasses import replace

from suffice.gateway.deployment import is_servable
from suffice.gateway.route import BuiltRoute
from suffice.store.routes.in_force import InForce


def serving_arm(base: BuiltRoute, held: InForce) -> BuiltRoute:
    """The route as it serves what is in force.

    base  the route as its settings have it, without any publication
    """
    waiting, made = replace(base, in_force=held), held.publication
    if made is None or not held.level or not is_servable(base, made) or made.arm not in base.settings.arms:
        return waiting
    return replace(waiting, certified=True, arm=made.arm, policy_version=made.version)
