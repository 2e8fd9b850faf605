"""What people do with the rollout of a route."""

from __future__ import annotations

from suffice.operations.fields import ROUTE, one_of
from suffice.operations.operation import OperationContext, OperationResult, operation, raise_if_refused
from suffice.store.routes import rollouts


@operation(
    "/rollouts/move",
    "move the rollout that runs on a route, or undo the last one",
    {"route": ROUTE, "move": one_of(", ".join(rollouts.STEPS), rollouts.STEPS, required=True)},
    title="Move a rollout, or roll back",
    commands=("policy promote", "policy hold", "policy release", "policy rollback"),
    goes_to="/console/policies",
)
def move_rollout(by: OperationContext, route: str, move: str) -> OperationResult:
    if move == "rollback" and route not in rollouts.read_running_rollouts(rollouts.read_rollouts(by.writer.path)):
        undone = raise_if_refused(by.services.take_back(route, by.reason, by.author))
        return OperationResult(
            f"Route {route}: {undone.first.active} serves again; running gateways follow within a second.", undone.state
        )
    result = raise_if_refused(rollouts.step(by.writer, route, move, **by.signed))
    return OperationResult(f"Route {route}: {result.sentence}; running gateways follow within a second.", result)
