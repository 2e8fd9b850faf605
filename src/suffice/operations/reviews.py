"""What people do with the review queue."""

from __future__ import annotations

from suffice.operations.fields import FormInput
from suffice.operations.operation import OperationContext, OperationResult, operation, raise_if_refused
from suffice.store.people import deciding


@operation(
    "/review/ask",
    "queue a run for review, whatever the daily cap",
    {"episode": FormInput("id of the run", required=True)},
    title="Ask for a review",
    commands=("review ask",),
    goes_to="/console/review",
)
def ask_for_review(by: OperationContext, episode: str) -> OperationResult:
    """Queue run EPISODE for review, regardless of the daily cap."""
    rules = {name: route.review for name, route in by.settings.routes.items()}
    item = raise_if_refused(deciding.ask_about(by.writer, episode, rules, by.reason, by.author, now_s=by.now_s))
    return OperationResult(f"Run {item.episode_id} is in the review queue.", item)
