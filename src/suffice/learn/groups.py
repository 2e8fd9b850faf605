"""Runs of one prompt stay together: into which fold or file a prompt belongs, by its hash alone.

The same prompt falls to the same place on every machine, in every version and however often it was asked, so a
model, its successor and its judge never share a question (FAULTS.md F52). Knows names of prompts, which are hashes
already; refuses to know their words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

MOST_REPEATS: Final = 5  # runs that one prompt may count for, however often it was asked


def place_of(key: str, *, purpose: str) -> float:
    """Where a prompt falls, in [0, 1). Another purpose is an independent lottery."""
    # Broken Unicode must fall somewhere like anything else.
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), person=purpose.encode()[:16], digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # a float holds 53 bits


def prompt_fold(key: str, n_folds: int) -> int:
    """0 … n_folds - 1: which of a version's models serves and judges this prompt. It was fitted on the other folds."""
    return int(place_of(key, purpose="fold") * n_folds)


def shared(some: Iterable[str], others: Iterable[str]) -> frozenset[str]:
    """Prompts on both sides of a split; a split that keeps its word has none."""
    return frozenset(some) & frozenset(others)


def repeat_weights(keys: Sequence[str]) -> NDArray[np.float64]:
    """What each run counts for, (0, 1], so that all runs of one prompt count for at most `MOST_REPEATS`."""
    names: dict[str, int] = {}
    number = np.array([names.setdefault(key, len(names)) for key in keys], dtype=np.int64)
    size = np.bincount(number, minlength=len(names))[number] if len(keys) else np.zeros(0)
    return np.asarray(np.minimum(1.0, MOST_REPEATS / np.maximum(size, 1)))
