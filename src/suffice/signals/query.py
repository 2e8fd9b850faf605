"""What is known and may be stored about a question before the first token: its form in numbers, none of its words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from suffice.types import Query

MOST_CHARS = 32_768  # read at most: of a longer text the first and the last half of them
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# A hyphen counts as minus only after a digit, a bracket or a space; half of LaTeX's operators are words.
_OPERATOR = re.compile(
    r"[+*/=<>^×÷±·≤≥≠≈√∑∏∫∂−]|(?<=[\d\s)\]])-(?=[\d\s(\[])"
    r"|\\(?:frac|sqrt|sum|prod|int|cdot|times|div|pm|leq?|geq?|neq?|log|ln|sin|cos|tan|binom)\b"
)
_OPTION = re.compile(r"^\s{0,8}\(?[A-J1-9][).:]\s", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_ASKS = re.compile(r"\b(?:what|which|who|whom|whose|when|where|why|how)\b")
_TYPES = (  # the first match counts; applied to the folded sentence that asks
    (
        "yes-no",
        re.compile(
            r"\b(?:true or false|yes or no)\b|^\W{0,8}(?:is|are|was|were|do|does|did|can|could|will|has|have)\b"
        ),
    ),
    (
        "number",
        re.compile(
            r"\bhow (?:many|much|long|far|old|often|tall|fast)\b|\b(?:calculate|compute|evaluate|simplify|solve)\b"
            r"|\b(?:the|a) (?:number|value|sum|product|area|volume|length|probability|remainder|average|total) of\b"
        ),
    ),
    ("proof", re.compile(r"\b(?:prove|show that)\b")),
    (
        "task",
        re.compile(r"^\W{0,8}(?:write|implement|translate|summari[sz]e|explain|describe|list|give|create|generate)\b"),
    ),
)
QUESTION_TYPES = (
    *("choice", "number", "yes-no", "proof", "task", "what", "which", "who", "when", "where", "why", "how", "other"),
)


def query_signals(
    question: str | None, *, metadata: Mapping[str, str], query_class: str = "", planned_steps: int | None = None
) -> Query:
    """Return what may be known and stored about a question before the first token. O(text), never raises.

    question       None: it was not given, and everything derived from it stays None
    metadata       declared words, such as the task's name
    planned_steps  of a full run; None: open
    """
    declared = tuple(sorted(metadata.items()))
    if question is None:
        return Query(query_class=query_class, metadata=declared, planned_steps=planned_steps)
    n_chars = len(question)
    if n_chars > MOST_CHARS:
        question = f"{question[: MOST_CHARS // 2]}\n{question[-MOST_CHARS // 2 :]}"
    folded = question.casefold()
    return Query(
        query_class=query_class,
        metadata=declared,
        planned_steps=planned_steps,
        n_chars=n_chars,
        n_words=len(_WORD.findall(folded)),
        n_numbers=len(_NUMBER.findall(question)),
        n_operators=len(_OPERATOR.findall(question)),
        question_type=_question_type(question, folded),
        script=_script(question),
    )


def class_of(query: Query | None) -> str:
    """Return the class that a question counts in: declared or learned, else its type; "" if nothing is known."""
    if query is None:
        return ""
    return query.query_class or query.question_type or ""


def _question_type(question: str, folded: str) -> str:
    if len(_OPTION.findall(question)) >= 2:
        return "choice"
    sentence = _asking_sentence(folded)
    for name, pattern in _TYPES:
        if pattern.search(sentence):
            return name
    asks = _ASKS.search(sentence)
    if asks is None:
        return "other"
    return "who" if asks[0].startswith("who") else asks[0]


def _asking_sentence(folded: str) -> str:
    end = folded.rfind("?")
    text = folded[:end] if end >= 0 else folded.rstrip().rstrip(".!")
    begin = max((mark.end() for mark in _SENTENCE_END.finditer(text)), default=0)
    return text[begin:].lstrip()


def _script(text: str) -> str | None:
    if text.isascii():
        return "latin" if any(map(str.isalpha, text)) else None
    counts: Counter[str] = Counter()
    for char, n in Counter(text).items():
        if char.isalpha():
            counts[_script_of(char)] += n
    if counts["kana"] * 10 >= counts["han"] > 0 and counts["kana"]:
        counts["kana"] += counts.pop("han")
    # Ties go to the first in the alphabet, so that the order of letters does not matter.
    return max(sorted(counts), key=counts.__getitem__) if counts.total() else None


@lru_cache(maxsize=4_096)
def _script_of(char: str) -> str:
    first = unicodedata.name(char, "unknown").split()[0].lower()
    if first in ("hiragana", "katakana", "katakana-hiragana", "halfwidth"):
        return "kana"
    if first == "fullwidth":
        return "latin"
    return "han" if first == "cjk" else first
