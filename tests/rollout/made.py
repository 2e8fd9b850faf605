"""Versions and evidence for tests."""

from __future__ import annotations

from typing import Any

import msgspec

from suffice.model.artefact import StopModel, TrainingRecord
from suffice.model.ensemble import Ensemble, Linear
from suffice.rollout.evidence import ArmName, RolloutEvidence, Rules, UnitRun
from suffice.rollout.versions import Version, VersionLineage

SECRET = "the deployment's own"
HERE: dict[str, Any] = {"kind": "samples", "scorer": "number"}
LINEAGE = VersionLineage(parent=None, proposed_by="person:ann", why="the vote is safe sooner than we thought")


def rule(threshold: float = 0.95, **changed: Any) -> Version:
    """A version that is a plain policy."""
    made: dict[str, Any] = {
        "form": "policy",
        "body": {"policy": "beta", "threshold": threshold},
        "kind": "samples",
        "scorer": "number",
        "model_family": None,
        "lineage": LINEAGE,
    }
    made |= changed
    return Version(**made)


def learned_body(weight: float = 0.5) -> dict[str, Any]:
    """What a learned version is, as plain data."""
    features = ("confidence", "logit(confidence)")
    model = StopModel(
        features=features,
        suffices=Ensemble((Linear((weight,) * len(features), 0.1),)),
        trained=TrainingRecord(n_episodes=9, n_questions=3, digest="d", target="as-good", seed=0),
    )
    body = {"schema": 2, "models": [model, model], "levels": [[0.1, 0.2], [0.1, 0.3]]}
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(body))
    return plain


def learned(body: dict[str, Any] | None = None, **changed: Any) -> Version:
    """A version that was learned."""
    made: dict[str, Any] = {
        "kind": "reasoning",
        "scorer": "number",
        "model_family": "qwen3-8b",
        "lineage": VersionLineage(
            parent=rule().address, proposed_by="job:retrain", why="drift", since_seq=1, to_seq=900
        ),
        "report_card": {"saving": 0.31},
    }
    made |= changed
    return Version(form="learned", body=body or learned_body(), **made)


def audited(
    evidence: RolloutEvidence, query_class: str, *, same: int = 0, lost: int = 0, gained: int = 0
) -> RolloutEvidence:
    """With audits of a class, and as much traffic."""
    for z, n in ((0, same), (1, lost), (-1, gained)):
        for _ in range(n):
            evidence = evidence.with_audit(query_class, z, full=100, active=60, candidate=50)  # type: ignore[arg-type]
    return evidence.with_request(query_class, same + lost + gained)


def ran(evidence: RolloutEvidence, arm: ArmName, n: int, *, every: int = 0, **bad: Any) -> RolloutEvidence:
    """With live runs of an arm; each `every`-th is `bad`."""
    for i in range(n):
        is_bad = bool(every) and i % every == 0
        run = UnitRun(seconds=8.0) if not is_bad else UnitRun(**{"seconds": 8.0, **bad})
        evidence = evidence.with_run(arm, run, Rules())
    return evidence
