"""Whose word counts: one verdict for each audit, whatever was said, by whom and in which order.

    labels, audits of a window that differ ──▶ stand ──▶ verdicts; contested audits, to be asked again

Four rules, in this order.
1. A voice (a key speaking for a source) may change its mind: its last word received counts, by the log's own sequence
   and never by a client's clock.
2. A key that is not trusted outright speaks for at most a share of the audits that can use a label, and for one at
   least; beyond it its later words count as not said. The share is one of the audits and not of the labels, because
   nobody can send more audits.
3. The highest trust present decides.
4. Voices of that trust that contradict each other leave the audit without a verdict, to be asked again.

An audit without a verdict counts as lost where it disagrees (`maturity`), so whoever is silenced or quarrels costs
saving and never the promise. The result depends on the set of labels alone: doubled, late and reordered ones change
nothing.

What the cap is worth. One lying key decides at most `LabelSummary.allowed` audits. `hardened` counts so many as lost
whatever was said, and a certificate from those counts holds in spite of one such key, or of k with k times as many.
Against many keys that lie together the cap does no more than make many keys necessary; what they can do was measured
and stands in docs/reference/assurance.md.

Knows labels; refuses to know how a verdict was reached and which keys ask the model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from types import MappingProxyType
from typing import Final

import numpy as np

from suffice.assurance.certify import Counts
from suffice.types import Feedback

MAX_SHARE: Final = 0.05  # of the audits that can use a label, for one key
TRUSTED: Final = 2  # keys that speak with this trust or more are not capped
INFERENCE_KEY: Final = "key"  # the door (`Feedback.door`) of keys that may ask the model
BEHAVIOUR: Final = "behaviour"  # the source of what a user did without a word: asked again, left
RANKS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "reviewer": 3,  # a person whom the owner asked
        "exact-match": 2,  # compared with a known reference by the owner's own system
        "judge": 1,  # a judge model
        BEHAVIOUR: -1,  # weaker than what anybody says, users included
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedLabel:
    """One word about one audit."""

    audit: str
    seq: int  # place in the log, unique; the order in which words were received
    source: str  # "reviewer", "user" …
    key: str  # who sent it
    trust: int  # rank of that source, from this key, on this route; see `trust_of`
    verdict: Hashable  # what it makes of the audit; equal where it means the same, such as the audit's row of Z


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary:
    """What the labels of a window come to."""

    verdicts: Mapping[str, Hashable]  # by audit; one that is not here is unlabelled
    contested: frozenset[str]  # audits on which voices of equal trust contradict each other: ask again
    set_aside: Mapping[str, int]  # by key: words beyond its share
    allowed: int  # audits that one capped key may speak for


def trust_of(source: str, *, asks: bool = False) -> int:
    """The usual rank of a source; 0 for users and for whatever is not known, below it for what they only did.

    A source is a claim, and whoever sends it could have written another. So whoever also asks the model with the same
    key is a user, whatever he calls himself.

    asks  was something asked of the model with the sender's key, or may it be?
    """
    rank = RANKS.get(source, 0)
    return min(rank, 0) if asks else rank


def rank_of(said: Feedback, callers: Collection[str] = ()) -> int:
    """The rank of what somebody said: that of its source, unless it came with a key that asks the model, or may.

    callers  senders that are known to have asked
    """
    return trust_of(said.source, asks=said.door == INFERENCE_KEY or said.sender in callers)


def stand(
    labels: Iterable[TrustedLabel], *, differing: Collection[str], max_share: float = MAX_SHARE, trusted: int = TRUSTED
) -> LabelSummary:
    """Find the one verdict of each audit that can use one; the order of `labels` does not matter.

    differing  audits of the window whose answers differ at a level in play; words about others are ignored. All audits
               of the window in their place would give each key ten times the weight
    max_share  largest part of `differing` that one capped key may speak for, [0, 1]. At 0.05 it takes twenty keys of
               equal weight to label everything: a route whose labels all come through one key has to trust that key
    trusted    rank from which on a key's words are not capped
    """
    if not 0 <= max_share <= 1:
        raise ValueError(f"max_share: got {max_share}; a fraction")
    words = _last_words(labels, differing)
    allowed = max(1, floor(max_share * len(differing)))
    kept = _within_share(words, allowed, trusted)
    verdicts, contested = _decide(kept)
    kept_words = set(kept)
    set_aside = Counter(label.key for label in words if label not in kept_words)
    return LabelSummary(
        verdicts=verdicts, contested=contested, set_aside=dict(sorted(set_aside.items())), allowed=allowed
    )


def hardened(counts: Counts, n_lies: int) -> Counts:
    """The worst that the truth can be if `n_lies` audits were lied about: so many count as lost, gained ones first.

    Their wealth is at most that of the true counts at every level, so what they certify is certified in truth.

    n_lies  at least 0; `LabelSummary.allowed` for one capped key
    """
    if n_lies < 0:
        raise ValueError(f"n_lies: got {n_lies}; at least 0")
    gained = np.minimum(counts.gained, n_lies)
    same = np.minimum(counts.same, n_lies - gained)
    return Counts(counts.gained - gained, counts.same - same, counts.lost + gained + same)


def _last_words(labels: Iterable[TrustedLabel], differing: Collection[str]) -> list[TrustedLabel]:
    """What each voice last said about each audit, in the order of the log."""
    last: dict[tuple[str, str, str], TrustedLabel] = {}
    for label in labels:
        voice = label.audit, label.key, label.source
        if label.audit in differing and (voice not in last or label.seq > last[voice].seq):
            last[voice] = label
    return sorted(last.values(), key=lambda label: label.seq)


def _within_share(words: Sequence[TrustedLabel], allowed: int, trusted: int) -> list[TrustedLabel]:
    """Without what capped keys say beyond their first `allowed` audits."""
    spoken: defaultdict[str, set[str]] = defaultdict(set)
    kept = []
    for label in words:
        if label.trust < trusted:
            audits = spoken[label.key]
            if label.audit not in audits and len(audits) >= allowed:
                continue
            audits.add(label.audit)
        kept.append(label)
    return kept


def _decide(words: Sequence[TrustedLabel]) -> tuple[dict[str, Hashable], frozenset[str]]:
    """One verdict for each audit by the highest trust present; audits on which that trust is of two minds."""
    highest: dict[str, int] = {}
    for label in words:
        highest[label.audit] = max(label.trust, highest.get(label.audit, label.trust))
    said: defaultdict[str, set[Hashable]] = defaultdict(set)
    for label in words:
        if label.trust == highest[label.audit]:
            said[label.audit].add(label.verdict)
    verdicts = {audit: next(iter(found)) for audit, found in sorted(said.items()) if len(found) == 1}
    return verdicts, frozenset(audit for audit, found in said.items() if len(found) > 1)
