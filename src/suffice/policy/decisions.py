"""The four things that a rule can say, each with its sentence.

Knows the words of a decision and refuses to know when they are said.
"""

from __future__ import annotations

from suffice.types import Decision


def go_on(reason: str, score: float | None = None) -> Decision:
    """The decision to continue."""
    return Decision(action="continue", reason=reason, score=score)


def suffices(reason: str, score: float) -> Decision:
    """The decision to stop because the answer suffices."""
    return Decision(action="stop", reason=reason, stop_reason="suffices", score=score)


def hopeless(reason: str, score: float) -> Decision:
    """The decision to stop because the full run would fail anyway."""
    return Decision(action="stop", reason=reason, stop_reason="hopeless", score=score)


def stop_at_budget(reason: str, score: float) -> Decision:
    """The decision to stop because a budget is used up, whatever the answer."""
    return Decision(action="stop", reason=reason, stop_reason="budget", score=score)
