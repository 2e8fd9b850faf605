"""All settings, in one frozen tree. Pure: files and environment are read in `wiring`.

    Settings
    ├── server      our HTTP edge: address, limits, keys
    ├── keys        API keys by name: where they are, what they permit, their limits
    ├── upstreams   model servers by name: address, driver, time-outs, ways to finish
    ├── routes      what is governed and how: match, kind, mode, scorer, policy, budgets
    ├── store       where events go
    ├── control     the loop that certifies, watches and brakes
    ├── console     pages for people and the control API
    ├── audit       where the head of the audit log goes
    ├── alerts      who is told when something goes wrong
    ├── retention   how long the log keeps what people said
    ├── monitoring  which requests have rows in the log
    ├── experiments ways to serve the same requests, compared: arms, unit, metrics, margins
    ├── rollout     how another version reaches traffic: steps, margins, evidence, pace
    ├── feedback    what holds for all that people say of answers
    └── metrics     what else they may say, declared: type, level, direction, range

Every field has a unit in its name or comment and a safe default. `parse_settings` refuses what it does
not know, with the path of the key and the nearest key that exists.
"""

from __future__ import annotations

from suffice.settings.parsing import parse_settings
from suffice.settings.rollout import Rollout
from suffice.settings.tables import (
    AlertKind,
    Alerts,
    AuditLog,
    Console,
    Control,
    Direction,
    Driver,
    Effort,
    Embeddings,
    Experiment,
    ExperimentArm,
    ExperimentUnit,
    Extra,
    FeedbackRules,
    FinishMethod,
    Judge,
    Key,
    Langfuse,
    MailTls,
    Match,
    Metric,
    MetricLevel,
    MetricType,
    OnFallback,
    Pressure,
    Prices,
    Probe,
    Retention,
    Review,
    Route,
    SamplingSettings,
    Server,
    Settings,
    Steps,
    Store,
    Template,
    TextPart,
    Upstream,
    VerifiedBy,
)

__all__ = [
    "AlertKind",
    "Alerts",
    "AuditLog",
    "Console",
    "Control",
    "Direction",
    "Driver",
    "Effort",
    "Embeddings",
    "Experiment",
    "ExperimentArm",
    "ExperimentUnit",
    "Extra",
    "FeedbackRules",
    "FinishMethod",
    "Judge",
    "Key",
    "Langfuse",
    "MailTls",
    "Match",
    "Metric",
    "MetricLevel",
    "MetricType",
    "OnFallback",
    "Pressure",
    "Prices",
    "Probe",
    "Retention",
    "Review",
    "Rollout",
    "Route",
    "SamplingSettings",
    "Server",
    "Settings",
    "Steps",
    "Store",
    "Template",
    "TextPart",
    "Upstream",
    "VerifiedBy",
    "parse_settings",
]
