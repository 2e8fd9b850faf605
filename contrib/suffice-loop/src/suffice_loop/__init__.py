"""Suffice in the loops of agent frameworks. Each module needs its framework; this one needs none."""

from __future__ import annotations

from suffice_loop.run import AgentRun as AgentRun
