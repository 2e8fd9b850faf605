"""Every table of the settings once: a good configuration that has them all, and the type of each. Knows no rule."""

from __future__ import annotations

from typing import Any

import msgspec

from suffice.settings import (
    Alerts,
    ArchiveSettings,
    Assurance,
    AuditLog,
    Console,
    Control,
    Embeddings,
    Experiment,
    ExperimentArm,
    Extra,
    FeedbackRules,
    Judge,
    Key,
    Langfuse,
    Match,
    Metric,
    ModelFacts,
    Oidc,
    OidcRole,
    Pressure,
    Prices,
    Probe,
    Retention,
    Review,
    ReviewCap,
    Rollout,
    Route,
    SamplingSettings,
    Server,
    Settings,
    Steps,
    Store,
    Telemetry,
    Template,
    Upstream,
)

RAW: dict[str, Any] = {
    "server": {},
    "keys": {"team": {"key_env": "TEAM_KEY"}},
    "upstreams": {
        "box": {
            "url": "http://127.0.0.1:8080",
            "extra": {},
            "prices": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2},
            "models": {"clear": {"efforts": ["low"]}},
            "template": {"turn": "{content}", "generate": ""},
        },
    },
    "routes": {
        "math": {
            "upstream": "box",
            "match": {},
            "probe": {},
            "steps": {},
            "pressure": {"queue": 1},
            "embeddings": {"url": "http://h", "model": "m"},
            "judge": {"url": "http://h", "model": "m"},
            "review": {},
        },
    },
    "store": {},
    "control": {},
    "assurance": {},
    "feedback": {"langfuse": {}},
    "metrics": {"clear": {"type": "rating"}},
    "console": {"oidc": {"issuer": "https://id", "client_id": "c", "roles": {"team": {"role": "viewer"}}}},
    "audit": {},
    "alerts": {},
    "archive": {},
    "retention": {},
    "telemetry": {},
    "monitoring": {},
    "review": {},
    "rollout": {},
    "experiments": {"brisk": {"routes": ["math"], "arms": {"full": {"full": True}, "brisk": {}}}},
}
LEVELS: dict[tuple[str, ...], type[msgspec.Struct]] = {
    (): Settings,
    ("server",): Server,
    ("keys", "team"): Key,
    ("upstreams", "box"): Upstream,
    ("upstreams", "box", "extra"): Extra,
    ("upstreams", "box", "prices"): Prices,
    ("upstreams", "box", "models", "clear"): ModelFacts,
    ("upstreams", "box", "template"): Template,
    ("routes", "math"): Route,
    ("routes", "math", "match"): Match,
    ("routes", "math", "probe"): Probe,
    ("routes", "math", "steps"): Steps,
    ("routes", "math", "pressure"): Pressure,
    ("routes", "math", "embeddings"): Embeddings,
    ("routes", "math", "judge"): Judge,
    ("routes", "math", "review"): Review,
    ("store",): Store,
    ("control",): Control,
    ("assurance",): Assurance,
    ("feedback",): FeedbackRules,
    ("feedback", "langfuse"): Langfuse,
    ("metrics", "clear"): Metric,
    ("console",): Console,
    ("console", "oidc"): Oidc,
    ("console", "oidc", "roles", "team"): OidcRole,
    ("audit",): AuditLog,
    ("alerts",): Alerts,
    ("archive",): ArchiveSettings,
    ("retention",): Retention,
    ("telemetry",): Telemetry,
    ("monitoring",): SamplingSettings,
    ("review",): ReviewCap,
    ("rollout",): Rollout,
    ("experiments", "brisk"): Experiment,
    ("experiments", "brisk", "arms", "brisk"): ExperimentArm,
}
# What the owner of a configuration calls things; all other parts of a path are our keys.
OWNERS_NAMES = frozenset({"team", "box", "math", "clear", "brisk"})


def heading_of(level: tuple[str, ...]) -> str:
    """The section of docs/reference/settings.md that lists this table."""
    return "`[" + ".".join("NAME" if part in OWNERS_NAMES else part for part in level) + "]`"
