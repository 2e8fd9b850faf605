"""The protocol of scorers."""

from __future__ import annotations

from typing import Protocol


class Scorer(Protocol):
    """Reads and compares answers.

    For every scorer and every string: no method raises, time is linear, `normalise` is idempotent, and what `extract`
    returns is already normal and can be encoded as UTF-8.
    """

    @property
    def name(self) -> str: ...

    def extract(self, text: str) -> str | None:
        """Return the normalised answer in a model's text; None if there is none."""
        ...

    def normalise(self, answer: str) -> str | None:
        """Return the normal form of a bare answer, such as a reference; None if it is not an answer."""
        ...

    def match(self, answer: str | None, gold: str) -> bool:
        """Return whether `answer` equals the reference, both in normal form. None never matches."""
        ...
