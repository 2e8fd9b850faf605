"""The composition root: from a settings file to running objects. Files, environment and clocks enter here.

    files ──▶ settings ──▶ routes ──▶ beginning ──▶ running, working      with what `keys` holds

Nothing below this room reads the environment, opens a file it was not given or asks for the time.
"""

from __future__ import annotations

from suffice.wiring.beginning import last_good, open_log
from suffice.wiring.files import load_settings
from suffice.wiring.keys import Randomness, api_key, deployment_salt, good_file, kill_file, new_id, secret
from suffice.wiring.policies import check_policy, policy_table
from suffice.wiring.questions import question_texts, questions_file, review_questions
from suffice.wiring.routes import (
    Evidence,
    build_route,
    check,
    check_experiment,
    evidence_warnings,
    read_evidence,
    refusal_of,
)
from suffice.wiring.running import embedders, gateway, library
from suffice.wiring.working import decisions, worker

__all__ = [
    "Evidence",
    "Randomness",
    "api_key",
    "build_route",
    "check",
    "check_experiment",
    "check_policy",
    "decisions",
    "deployment_salt",
    "embedders",
    "evidence_warnings",
    "gateway",
    "good_file",
    "kill_file",
    "last_good",
    "library",
    "load_settings",
    "new_id",
    "open_log",
    "policy_table",
    "question_texts",
    "questions_file",
    "read_evidence",
    "refusal_of",
    "review_questions",
    "secret",
    "worker",
]
