"""The gateway fixture, shared with tests/gateway; and plug-ins, where some are installed, stand in the tables too."""

from __future__ import annotations

from suffice.plugins import load_plugins
from tests.gateway.conftest import serve

__all__ = ["serve"]

load_plugins()
