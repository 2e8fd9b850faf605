"""The composition root: from a settings file to running objects. Files, environment and clocks enter here.

    files ──▶ settings ──▶ routes ──▶ startup ──▶ gateway, worker      with what `keys` holds

Nothing below this room reads the environment, opens a file it was not given or asks for the time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from suffice.wiring.deployment import condition, load_deployment, require_log
    from suffice.wiring.files import load_settings
    from suffice.wiring.gateway import build_gateway, build_library
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
    from suffice.wiring.prestart import Preflight, embedders, preflight
    from suffice.wiring.questions import question_texts, questions_file
    from suffice.wiring.routes import (
        StartupEvidence,
        build_route,
        check_experiment,
        check_routes,
        evidence_warnings,
        read_evidence,
    )
    from suffice.wiring.startup import last_good, open_log
    from suffice.wiring.worker import open_decisions, open_worker

__all__ = [
    "Preflight",
    "Randomness",
    "StartupEvidence",
    "api_key",
    "build_gateway",
    "build_library",
    "build_route",
    "check_experiment",
    "check_policy",
    "check_routes",
    "condition",
    "deployment_salt",
    "embedders",
    "evidence_warnings",
    "good_file",
    "kill_file",
    "last_good",
    "load_deployment",
    "load_settings",
    "new_id",
    "open_decisions",
    "open_log",
    "open_worker",
    "policy_table",
    "preflight",
    "presence_files",
    "question_texts",
    "questions_file",
    "read_evidence",
    "require_log",
    "secret",
]

# Each name is imported when it is first asked for: most commands need settings and a log, and no gateway. So no room
# may have the name of something in this list: the room itself would be found in its place.
_ROOMS: Final = {
    "deployment": ("condition", "load_deployment", "require_log"),
    "files": ("load_settings",),
    "worker": ("open_decisions", "open_worker"),
    "keys": (
        "Randomness",
        "api_key",
        "deployment_salt",
        "good_file",
        "kill_file",
        "new_id",
        "presence_files",
        "secret",
    ),
    "policies": ("check_policy", "policy_table"),
    "prestart": ("Preflight", "embedders", "preflight"),
    "questions": ("question_texts", "questions_file"),
    "routes": (
        "StartupEvidence",
        "build_route",
        "check_routes",
        "check_experiment",
        "evidence_warnings",
        "read_evidence",
    ),
    "gateway": ("build_gateway", "build_library"),
    "startup": ("last_good", "open_log"),
}
_ROOM_OF: Final = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
