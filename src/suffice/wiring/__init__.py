"""The composition root: from a settings file to running objects. Files, environment and clocks enter here.

    files ──▶ settings ──▶ routes ──▶ beginning ──▶ running, working      with what `keys` holds

Nothing below this room reads the environment, opens a file it was not given or asks for the time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from suffice.wiring.beginning import last_good, open_log
    from suffice.wiring.deployment import condition, load_deployment, require_log
    from suffice.wiring.files import load_settings
    from suffice.wiring.keys import (
        Randomness,
        api_key,
        deployment_salt,
        good_file,
        kill_file,
        new_id,
        presence_files,
        secret,
    )
    from suffice.wiring.policies import check_policy, policy_table
    from suffice.wiring.questions import question_texts, questions_file
    from suffice.wiring.routes import (
        Evidence,
        build_route,
        check,
        check_experiment,
        evidence_warnings,
        read_evidence,
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
    "condition",
    "decisions",
    "deployment_salt",
    "embedders",
    "evidence_warnings",
    "gateway",
    "good_file",
    "kill_file",
    "last_good",
    "library",
    "load_deployment",
    "load_settings",
    "new_id",
    "open_log",
    "policy_table",
    "presence_files",
    "question_texts",
    "questions_file",
    "read_evidence",
    "require_log",
    "secret",
    "worker",
]

# Each name is imported when it is first asked for: most commands need settings and a log, and no gateway.
_ROOMS: Final = {
    "beginning": ("last_good", "open_log"),
    "deployment": ("condition", "load_deployment", "require_log"),
    "files": ("load_settings",),
    "keys": (
        "Randomness", "api_key", "deployment_salt", "good_file", "kill_file", "new_id", "presence_files", "secret",
    ),
    "policies": ("check_policy", "policy_table"),
    "questions": ("question_texts", "questions_file"),
    "routes": (
        "Evidence", "build_route", "check", "check_experiment", "evidence_warnings", "read_evidence",
    ),
    "running": ("embedders", "gateway", "library"),
    "working": ("decisions", "worker"),
}
_ROOM_OF: Final = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """One of the names above. Any: whatever its room has."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
