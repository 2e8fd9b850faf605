"""Suffice stops a language-model run when the answer suffices, and measures what that costs."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
