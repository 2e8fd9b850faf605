"""The composition root: builds running objects; no package below it reads the environment or the clock."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suffice.wiring.files import load_settings as load_settings
    from suffice.wiring.files import question_texts as question_texts
    from suffice.wiring.files import questions_file as questions_file
    from suffice.wiring.gateway import build_gateway as build_gateway
    from suffice.wiring.gateway import build_library as build_library
    from suffice.wiring.keys import deployment_salt as deployment_salt
    from suffice.wiring.keys import good_file as good_file
    from suffice.wiring.keys import kill_file as kill_file
    from suffice.wiring.keys import presence_files as presence_files
    from suffice.wiring.routes import build_route as build_route
    from suffice.wiring.routes import check_routes as check_routes
    from suffice.wiring.routes import evidence_warnings as evidence_warnings
    from suffice.wiring.routes import policy_table as policy_table
    from suffice.wiring.routes import read_evidence as read_evidence
    from suffice.wiring.startup import Preflight as Preflight
    from suffice.wiring.startup import embedders as embedders
    from suffice.wiring.startup import open_log as open_log
    from suffice.wiring.startup import preflight as preflight
    from suffice.wiring.worker import open_decisions as open_decisions
    from suffice.wiring.worker import open_worker as open_worker

# Each name is imported on first use, because most commands need settings and a log, but no gateway. A module of this
# package must not share the name of something in it: the module would be found in its place.
_MODULES = ("keys", "files", "routes", "startup", "worker", "gateway")  # the lightest first


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        for module in _MODULES:
            result = import_module(f"{__name__}.{module}")
            if getattr(getattr(result, name, None), "__module__", "") == result.__name__:
                return getattr(result, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
