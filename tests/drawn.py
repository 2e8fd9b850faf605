"""How many examples a property test draws: all that it asks for, or its share in a quick run."""

from __future__ import annotations

from hypothesis import settings

FULL = 100  # the number that a property draws by default; `--hypothesis-profile=quick` has fewer


def examples(n: int) -> int:
    """The share of `n` that the loaded profile draws, at least 2."""
    assert settings.default is not None
    return max(2, n * settings.default.max_examples // FULL)
