"""Records of the log as tests need them: plain, but for what the test says."""

from __future__ import annotations

from typing import Any

from suffice.types import Request, StepRecord


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


def plain_step(index: int, **given: Any) -> StepRecord:
    """A step of ten tokens whose trial answer is 4, and after which the run goes on."""
    plain: dict[str, Any] = {
        "tokens": 10,
        "answer": "4",
        "answer_source": "probe",
        "confidence": None,
        "entropy": None,
        "probe_tokens": 0,
        "action": "continue",
        "reason": "",
    }
    return StepRecord(index=index, **plain | given)
