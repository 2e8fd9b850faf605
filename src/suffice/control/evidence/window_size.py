"""How many full runs an epoch of a live route begins with, and how many audits its certificates look back on."""

from __future__ import annotations

from typing import Final

from suffice.assurance.windows import window_audits
from suffice.learn.certifier import HORIZON, full_runs
from suffice.settings import Control

MOST_AUDITS: Final = 10**7  # where a budget is no fraction, nothing is ever certified


def burst_requests(control: Control, max_em_drop: float) -> int:
    """Full runs at the beginning of an epoch: as the owner says, else by the law of `learn.certifier.full_runs`."""
    if control.burst_requests is not None:
        return control.burst_requests
    return full_runs(max_em_drop, HORIZON) if 0 < max_em_drop < 1 else MOST_AUDITS


def window_size(control: Control, max_em_drop: float) -> int:
    """Audits that a certificate looks back on: as the owner says, else by the law of `assurance.windows`."""
    if control.window_audits is not None:
        return control.window_audits
    return window_audits(max_em_drop) if 0 < max_em_drop < 1 else MOST_AUDITS
