"""Folds on the step's text and on reports by caller or model. Only English marks count; one cut in two is missed."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from operator import mul
from typing import ClassVar, Protocol

from suffice.errors import ConfigError
from suffice.scoring.pattern import Pattern, compile_pattern
from suffice.signals.fold import Fields, SignalField, parse_parameter
from suffice.signals.folds.answers import ROUNDING, LastStepFold, probability
from suffice.types import Query, Step

# On folded text. White space is bounded: a phrase may cross a line break, never a page. Every alternative begins with
# its letters and checks for the word's start after them, so that the search can skip to such letters.
_HEDGE = re.compile(
    r"(?:w(?<!\w\w)ait|b(?<!\w\w)ut|a(?<!\w\w)(?:ctually|lternatively)|h(?<!\w\w)(?:old\s{1,4}on|mm{1,8}|owever)"
    r"|let(?<!\w\w{3})\s{1,4}me\s{1,4}(?:(?:re-?|double[\s-])?check|verify|rethink|reconsider|think\s{1,4}again)"
    r"|on(?<!\w\w\w)\s{1,4}second\s{1,4}thought|i(?<!\w\w)\s{1,4}made\s{1,4}a\s{1,4}mistake)\b"
)
_GRAM_WORDS = 8
_MAX_GRAMS = 65_536
_CHUNK = _MAX_GRAMS // 4  # words at once, so that one huge step cannot exceed the memory
_LONG_WORDS = 20  # characters on average: more than in the words of a text with spaces


@lru_cache(maxsize=1)  # the folds of one step read it one after the other; only one step's text is kept
def words_of(text: str) -> tuple[str, list[str]]:
    """Return the case-folded text and its words, which must not be modified. O(text)."""
    folded = text.casefold()
    return folded, folded.split()


class Hedges:
    name = "hedges"
    looks_at = 'the step\'s text: "wait", "hmm", "let me check" … in English'
    source = "Dynasor-CoT, [arXiv:2412.20993](https://arxiv.org/abs/2412.20993)"
    fields: ClassVar[Fields] = {
        "hedges": SignalField("marks of doubt and self-correction in this step", whole=True),
        "hedge_rate": SignalField("such marks per 100 words of the run so far", unknown="before the first word"),
    }

    def __init__(self) -> None:
        self._hedges = self._n_hedges = self._n_words = 0

    def update(self, step: Step) -> None:
        folded, words = words_of(step.text)
        self._hedges = len(_HEDGE.findall(folded))
        self._n_hedges += self._hedges
        self._n_words += len(words)

    def values(self) -> dict[str, int | float | None]:
        rate = 100.0 * self._n_hedges / self._n_words if self._n_words else None
        return {"hedges": self._hedges, "hedge_rate": rate}


class Loops:
    """The share of the last step that repeats the run: of the eight-word sequences ending in it, those seen before.

    Case is ignored. At least the last 32,768 and at most the last 65,536 different sequences are remembered, as one
    number each, so memory is bounded for any length of thought.
    """

    name = "loops"
    looks_at = "the step's text: words, and runs of eight words, that occurred before"
    source = (
        "ours; `known_words` reads PUMA's redundancy, [arXiv:2605.17672](https://arxiv.org/abs/2605.17672), by words"
    )
    fields: ClassVar[Fields] = {
        "loop_share": SignalField(
            "share of the eight-word runs ending in this step that repeat the run",
            unknown="fewer than eight words",
            high=1.0,
        ),
        "known_words": SignalField("share of the step's words that the run had before", unknown="no words", high=1.0),
    }

    def __init__(self) -> None:
        self._tail: list[str] = []  # the last words, one fewer than a gram has
        self._young: set[int] = set()  # becomes the old set when it is half full …
        self._old: set[int] = set()  # … and the previous old set is dropped
        self._share: float | None = None
        self._vocabulary: set[str] = set()
        self._known: float | None = None

    def update(self, step: Step) -> None:
        _, words = words_of(step.text)
        self._known = sum(map(self._vocabulary.__contains__, words)) / len(words) if words else None
        if len(self._vocabulary) < _MAX_GRAMS:
            self._vocabulary.update(words)
        n_grams = n_new = 0
        for begin in range(0, len(words), _CHUNK):
            text = self._tail + words[begin : begin + _CHUNK]
            self._tail = text[1 - _GRAM_WORDS :]
            n_grams += max(0, len(text) - _GRAM_WORDS + 1)
            n_new += self._remember(text)
        self._share = (n_grams - n_new) / n_grams if n_grams else None

    def values(self) -> dict[str, float | None]:
        return {"loop_share": self._share, "known_words": self._known}

    def _remember(self, text: list[str]) -> int:
        # Another process salts hash() differently. That matters only if two of the 65,536 64-bit numbers collide:
        # in one run of ten thousand million.
        grams: Iterable[int] = map(hash, zip(*(text[i:] for i in range(_GRAM_WORDS)), strict=False))
        n_old = 0
        if self._old:
            grams = set(grams)
            n_old = len((grams - self._young) & self._old)
        before = len(self._young)
        self._young.update(grams)
        n_new = len(self._young) - before - n_old
        if len(self._young) >= _MAX_GRAMS // 2:
            self._old, self._young = self._young, set()
        return n_new


def encode_pattern(pattern: str) -> str:
    """Write a pattern as a word that a need may hold: `x` and its bytes in hexadecimal."""
    return "x" + pattern.encode("utf-8", "surrogatepass").hex()


@lru_cache(maxsize=256)
def _compile(word: str) -> Pattern:
    try:
        return compile_pattern(bytes.fromhex(word.removeprefix("x")).decode(), ignore_case=True)
    except ValueError as error:  # BadPattern is one
        raise ConfigError(f"pattern.hex: got {word!r:.80}; a pattern as `encode_pattern` writes it ({error})") from None


class StepPattern:
    """Whether a pattern of the owner's is in the step's text, case ignored, in its last 4,000 characters.

    The value is a code of the pattern, above 0 where it is found and below 0 where not, so that a recorded value is
    never read as that of another pattern.
    """

    name = "pattern"
    looks_at = "the step's text, for a pattern that the owner wrote"
    source = "asked for in [vLLM #42487](https://github.com/vllm-project/vllm/issues/42487)"
    parameters: ClassVar[Mapping[str, str]] = {"hex": "the pattern: `x` and its bytes in hexadecimal"}
    fields: ClassVar[Fields] = {
        "pattern_code": SignalField(
            "a code of the pattern: positive if found, negative if not", low=-1.0, high=1.0, unknown="no text"
        )
    }

    def __init__(self, *, hex: str = encode_pattern("answer")) -> None:  # noqa: A002 - how a need writes it
        if not str(hex).startswith("x"):
            raise ConfigError(f"pattern.hex: got {hex!r:.80}; a pattern as `encode_pattern` writes it")
        self._pattern, self._code = _compile(hex), pattern_code(hex)
        self._value: float | None = None

    def update(self, step: Step) -> None:
        code = self._code if self._pattern.last(step.text) is not None else -self._code
        self._value = code if step.text else None

    def values(self) -> dict[str, float | None]:
        return {"pattern_code": self._value}


def pattern_code(word: str) -> float:
    return max(action_code(word), 2.0**-48)


class Embedder(Protocol):
    """Turns texts into vectors of one length. It does I/O, so it is called before the step is observed."""

    @property
    def rests(self) -> bool:
        """Whether it failed recently, so that a call now would return nothing."""
        ...

    def recall(self, text: str) -> tuple[float, ...] | None:
        """Return the cached vector of this text; None if it would need a call."""
        ...

    async def embed(self, text: str) -> tuple[float, ...] | None:
        """Return the vector of a text; None if there is none, which is never an error."""
        ...


class Drafts:
    """How far the last step is from the one before, and for how many steps the distance has been small.

    The distance is 1 - the cosine of the two steps' vectors if both have one of the same length (negative: 0);
    otherwise 1 - the weighted overlap of their words (Ruzicka's form of Jaccard's index), case ignored. It compares the
    texts, or the answers if one of the steps has no text. A distance is small at or below `threshold`. The rule that
    waits for small distances in a row is that of "semantic early stopping", arXiv:2606.27009, there on embeddings.
    """

    name = "drafts"
    looks_at = (
        "the step's text, or its answer, against the step before: by words, by vectors where both steps bring one"
    )
    source = "[arXiv:2606.27009](https://arxiv.org/abs/2606.27009)"
    parameters: ClassVar[Mapping[str, str]] = {"threshold": "at or below it a draft hardly moved"}
    fields: ClassVar[Fields] = {
        "draft_distance": SignalField(
            "1 − the weighted overlap of the words (smaller counts over larger ones), or 1 − cosine of the vectors",
            unknown="first step, nothing to compare",
            high=1.0,
        ),
        "draft_patience": SignalField("steps in a row whose distance was at most the threshold", whole=True),
    }

    def __init__(self, *, threshold: float = 0.1) -> None:
        self._threshold = parse_parameter("drafts.threshold", threshold, most=1.0, low_included=True)
        self._before: _Draft | None = None
        self._distance: float | None = None
        self._patience: int | None = None

    def update(self, step: Step) -> None:
        draft = _Draft(step)
        self._distance = None if self._before is None else _distance(self._before, draft)
        self._before = draft
        still = self._distance is not None and self._distance <= self._threshold
        self._patience = (self._patience or 0) + 1 if still else 0

    def values(self) -> dict[str, int | float | None]:
        return {"draft_distance": self._distance, "draft_patience": self._patience}


class _Draft:
    __slots__ = ("answer", "text", "vector")

    def __init__(self, step: Step) -> None:
        self.vector = step.vector
        self.text = _count_words(step.text) if step.text else None
        self.answer = step.answer


def _distance(before: _Draft, now: _Draft) -> float | None:
    if now.vector and len(now.vector) == len(before.vector):
        cosine = _cosine(before.vector, now.vector)
        if cosine is not None:
            return min(1.0, max(0.0, 1.0 - cosine))
    if before.text is not None and now.text is not None:
        return 1.0 - _overlap(before.text, now.text)
    if before.answer is None or now.answer is None:
        return None
    if before.answer == now.answer:
        return 0.0
    return 1.0 - _overlap(_count_words(before.answer), _count_words(now.answer))


def _count_words(text: str) -> Counter[str]:
    folded, words = words_of(text)
    # A formula, an address or a script without spaces is counted by its characters.
    return Counter(words if len(folded) <= _LONG_WORDS * len(words) else "".join(words))


def _overlap(a: Counter[str], b: Counter[str]) -> float:
    """Return the sum of the smaller counts over the sum of the larger, [0, 1]; 1 if both are empty."""
    if len(a) > len(b):
        a, b = b, a
    get = b.get
    shared = sum([min(count, get(word, 0)) for word, count in a.items()])
    everything = a.total() + b.total() - shared
    return shared / everything if everything else 1.0


def _cosine(a: tuple[float, ...], b: tuple[float, ...]) -> float | None:
    length = math.hypot(*a) * math.hypot(*b)
    if not 0.0 < length < math.inf:
        return None
    cosine = sum(map(mul, a, b)) / length
    return cosine if math.isfinite(cosine) else None


class SelfReport(LastStepFold):
    name = "said"
    looks_at = "what the model or the caller said of the step"
    source = "rarely worth much: [arXiv:2606.13814](https://arxiv.org/abs/2606.13814)"
    fields: ClassVar[Fields] = {
        "stated_confidence": SignalField("what the model said of itself", unknown="not given", high=1.0),
        "reported_done": SignalField("the model's own flag that it is done", unknown="not given", high=1.0),
        "action_code": SignalField(
            "hash of the word that the caller gave for this kind of step", unknown="not given", high=1.0
        ),
    }

    def values(self) -> dict[str, float | None]:
        step = self._step
        if step is None:
            return dict.fromkeys(self.fields)
        return {
            "stated_confidence": probability(step.stated_confidence),
            "reported_done": None if step.reported_done is None else float(step.reported_done),
            "action_code": None if step.action is None else action_code(step.action),
        }


class WordingConfidence(LastStepFold):
    name = "wording"
    looks_at = "the mean log-probability of the step's own tokens, as it was given or as suffice-vllm read it"
    source = "AgentStop, [arXiv:2605.15206](https://arxiv.org/abs/2605.15206)"
    fields: ClassVar[Fields] = {
        "step_logprob": SignalField(
            "mean log-probability of the step's own tokens", unknown="not given", low=float("-inf"), high=0.0
        )
    }

    def values(self) -> dict[str, float | None]:
        logprob = None if self._step is None else self._step.logprob
        # A mean of minus infinity is one impossible token, which reveals nothing about the others.
        known = logprob is not None and float("-inf") < logprob <= ROUNDING
        return {"step_logprob": min(0.0, logprob) if known and logprob is not None else None}


@lru_cache(maxsize=1024)
def action_code(action: str) -> float:
    """Return a number in [0, 1) for a word: equal words give equal numbers in every process."""
    digest = hashlib.blake2b(action.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


class PlanProgress:
    name = "plan"
    looks_at = "the planned number of steps"
    source = "–"
    fields: ClassVar[Fields] = {
        "step_share": SignalField(
            "steps so far over planned steps: samples asked for, the cap on rounds", unknown="no plan", high=1.0
        )
    }

    def __init__(self) -> None:
        self._planned: int | None = None
        self._index = 0

    def begin(self, query: Query | None) -> None:
        planned = None if query is None else query.planned_steps
        self._planned = planned if planned and planned > 0 else None

    def update(self, step: Step) -> None:
        self._index = step.index

    def values(self) -> dict[str, float | None]:
        if self._planned is None or not self._index:
            return {"step_share": None}
        return {"step_share": min(1.0, self._index / self._planned)}


class GivenQuery:
    name = "query"
    looks_at = "what was known before the first token, see below"
    source = "–"
    fields: ClassVar[Fields] = {"query": SignalField("the record of the query", unknown="nothing was given")}

    def __init__(self) -> None:
        self._query: Query | None = None

    def begin(self, query: Query | None) -> None:
        self._query = query

    def update(self, step: Step) -> None:
        """Do nothing: a step does not change the query."""

    def values(self) -> dict[str, Query | None]:
        return {"query": self._query}
