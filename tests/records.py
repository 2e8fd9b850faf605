"""Records of the log as tests need them: plain, but for what the test says."""

from __future__ import annotations

from typing import Any

from suffice.types import Request


def plain_request(episode_id: str, **given: Any) -> Request:
    """A governed request for one chain of thought on route "r", no audit, in observe."""
    plain: dict[str, Any] = {
        "route": "r",
        "kind": "reasoning",
        "mode": "observe",
        "model": "m",
        "stream": False,
        "n_samples": 1,
        "audit": False,
        "propensity": 1.0,
        "policy_version": "v",
        "certified": False,
        "question_key": "",
        "ungoverned": None,
        "received_at_s": 0.0,
    }
    return Request(episode_id=episode_id, **plain | given)
