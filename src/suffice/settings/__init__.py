"""All settings as one frozen tree of tables. Pure: `wiring` reads files and the environment.

Every field has its unit in its name or comment, and a safe default. `parse_settings` refuses unknown keys with their
path and the nearest known key.
"""

from __future__ import annotations

from suffice.settings.parsing import parse_settings as parse_settings
from suffice.settings.tables import AlertKind as AlertKind
from suffice.settings.tables import Alerts as Alerts
from suffice.settings.tables import AuditLog as AuditLog
from suffice.settings.tables import Console as Console
from suffice.settings.tables import Control as Control
from suffice.settings.tables import Direction as Direction
from suffice.settings.tables import Driver as Driver
from suffice.settings.tables import Effort as Effort
from suffice.settings.tables import Embeddings as Embeddings
from suffice.settings.tables import Experiment as Experiment
from suffice.settings.tables import ExperimentArm as ExperimentArm
from suffice.settings.tables import ExperimentUnit as ExperimentUnit
from suffice.settings.tables import Extra as Extra
from suffice.settings.tables import FeedbackRules as FeedbackRules
from suffice.settings.tables import FinishMethod as FinishMethod
from suffice.settings.tables import Judge as Judge
from suffice.settings.tables import Key as Key
from suffice.settings.tables import Langfuse as Langfuse
from suffice.settings.tables import MailTls as MailTls
from suffice.settings.tables import Match as Match
from suffice.settings.tables import Metric as Metric
from suffice.settings.tables import MetricLevel as MetricLevel
from suffice.settings.tables import MetricType as MetricType
from suffice.settings.tables import OnFallback as OnFallback
from suffice.settings.tables import Pressure as Pressure
from suffice.settings.tables import Prices as Prices
from suffice.settings.tables import Probe as Probe
from suffice.settings.tables import Retention as Retention
from suffice.settings.tables import Review as Review
from suffice.settings.tables import Rollout as Rollout
from suffice.settings.tables import Route as Route
from suffice.settings.tables import SamplingSettings as SamplingSettings
from suffice.settings.tables import Server as Server
from suffice.settings.tables import Settings as Settings
from suffice.settings.tables import Steps as Steps
from suffice.settings.tables import Store as Store
from suffice.settings.tables import Template as Template
from suffice.settings.tables import TextPart as TextPart
from suffice.settings.tables import Upstream as Upstream
from suffice.settings.tables import VerifiedBy as VerifiedBy
