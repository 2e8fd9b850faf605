"""Suffice stops a language-model run when the answer suffices, and measures what that costs.

Names are imported on first use, so `import suffice` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from suffice.governor import AsyncEpisode, Episode, Governor
    from suffice.policy.base import Policy
    from suffice.types import Decision, Outcome, Signals

__version__ = "0.2.0"
__all__ = ["AsyncEpisode", "Decision", "Episode", "Governor", "Outcome", "Policy", "Signals", "__version__"]

_FROM = {
    "AsyncEpisode": "suffice.governor",
    "Decision": "suffice.types",
    "Episode": "suffice.governor",
    "Governor": "suffice.governor",
    "Outcome": "suffice.types",
    "Policy": "suffice.policy.base",
    "Signals": "suffice.types",
}


def __getattr__(name: str) -> object:
    if name not in _FROM:
        raise AttributeError(f"module 'suffice' has no attribute {name!r}; public: {', '.join(__all__)}")
    return getattr(importlib.import_module(_FROM[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
