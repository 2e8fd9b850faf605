"""The gateway fixture, shared with tests/gateway."""

from __future__ import annotations

from tests.gateway.conftest import serve

__all__ = ["serve"]
