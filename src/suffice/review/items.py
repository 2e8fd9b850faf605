"""The records of the review queue: items, leases, verdicts, and the text of a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

ReviewReason: TypeAlias = Literal[
    "disagreement",  # an audit whose stop would have given another answer, at an eligible level
    "class_below",  # of a query class that stopping harms beyond the budget
    "drift",  # one of the first runs of a new regime
    "uncertain",  # stopped although its trial answers had not settled
    "control",  # drawn at random from all runs
    "person",  # requested by a person
]
Shows: TypeAlias = Literal[
    "both",  # a full run and a stop's different answer
    "full",  # a full run without a stop, or with the same answer
    "early",  # a stopped run: the full run's answer is unknown
]
ADJUDICATOR: Final = 0  # the slot of the adjudicator
DAY_S: Final = 86_400.0
MOST_TEXT: Final = 4_000  # characters of a reason or a corrected answer


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewSubject:
    episode_id: str
    route: str
    why: ReviewReason
    because: str  # the reason, a sentence for the reviewer
    shows: Shows  # which answers to judge
    full_answer: str | None  # normalised, as in the log; None: no answer, or no full run
    early_answer: str | None  # the stop's, delivered or not
    deadline_s: float | None = None  # Unix time after which its label counts as missing; None: none
    question_key: str = ""  # as in the request's row
    query_class: str = ""  # as in the request's row
    tenant: str = ""  # as in the request's row


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewItem(ReviewSubject):
    priority: float  # higher comes first
    day: int  # days since 1970-01-01 UTC; the item counts for this day's cap
    n_reviewers: int  # independent verdicts required, at least 1
    requested_at_s: float  # Unix time
    author: str  # a worker, or a person
    lease_s: float = 900.0  # duration of a reviewer's lease
    open_until_s: float | None = None  # Unix time after which it expires; None: never
    propensity: float | None = None  # P(drawn) in the control share's draw; None: picked on purpose
    drawing: int | None = None  # number of that draw on the route


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlDraw:
    """One draw of the control share: a sample of all runs that ended in one stretch of the log, with equal odds."""

    route: str
    number: int  # of the route's draws, from 1
    day: int  # days since 1970-01-01 UTC
    since_seq: int  # runs whose outcome comes after this position …
    until_seq: int  # … and up to this one were candidates
    n_candidates: int
    drawn: tuple[str, ...]  # episodes
    drawn_at_s: float  # Unix time
    author: str

    @property
    def propensity(self) -> float:
        return len(self.drawn) / self.n_candidates if self.n_candidates else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewLease:
    item: str  # episode
    route: str
    slot: int  # 1 … n_reviewers; ADJUDICATOR: the third person's
    turn: int  # of that slot, from 1: prevents two leases of one turn
    reviewer: str
    leased_at_s: float  # Unix time
    until_s: float  # Unix time


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemReturn:
    item: str
    route: str
    slot: int
    turn: int
    reviewer: str
    reason: str
    returned_at_s: float  # Unix time


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictForm:
    item: str
    reviewer: str
    word: str  # one of `allowed_verdicts`
    corrected: str | None = None  # the right answer, if the reviewer knows it
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    item: str
    route: str
    reviewer: str
    revision: int  # of this reviewer's verdict on the item, from 1
    slot: int | None  # None: no slot was free, and the verdict is kept without one
    turn: int  # of its lease; 0: none
    full_right: bool | None
    early_right: bool | None
    corrected: str | None
    unsure: bool
    reason: str
    given_at_s: float  # Unix time
    late: bool = False  # the lease had expired
    before: str = ""  # the reviewer's earlier verdict, as `category`; "": none

    @property
    def category(self) -> str:
        return "unsure" if self.unsure else _CATEGORIES.get((self.full_right, self.early_right), "unsure")


_CATEGORIES: Final[Mapping[tuple[bool | None, bool | None], str]] = {  # (full answer right, early answer right)
    (True, True): "both",
    (True, False): "full",
    (False, True): "early",
    (False, False): "neither",
    (True, None): "right",
    (None, True): "right",
    (False, None): "wrong",
    (None, False): "wrong",
}


def day_number(at_s: float) -> int:
    return int(at_s // DAY_S)


def allowed_verdicts(shows: Shows) -> tuple[str, ...]:
    return ("both", "full", "early", "neither", "unsure") if shows == "both" else ("right", "wrong", "unsure")


MOST_CHARS: Final = 200_000  # of a stored question, and of a run's sources; a page displays less
MOST_SOURCES: Final = 1_000  # of one step


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    step: int  # of the run, from 1
    what: Literal["read", "wrote"]  # a retrieved passage, or the step's own text
    text: str


@dataclass(slots=True, kw_only=True)
class SourceBuffer:
    until_s: float  # Unix time at which they expire
    sources: list[Source] = field(default_factory=list)
    is_cut: bool = False  # the sources were longer than what is kept
    _n_chars: int = 0

    def add(self, step: int, *, read: Sequence[str], wrote: str) -> None:
        for text in read:
            self._put(step, "read", text)
        self._put(step, "wrote", wrote)

    def _put(self, step: int, what: Literal["read", "wrote"], text: str) -> None:
        kept = text[: MOST_CHARS - self._n_chars]
        self.is_cut = self.is_cut or len(kept) < len(text)
        if kept:
            self.sources.append(Source(step=step, what=what, text=kept))
            self._n_chars += len(kept)


def format_conversation(messages: Sequence[Any]) -> str:
    """A conversation as text; for a single message, its text. Any: a client's JSON.

    >>> print(format_conversation([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]))
    system: Be brief.
    <BLANKLINE>
    user: 2 + 2?
    """
    sentences = [(str(m.get("role", "")), _text(m.get("content"))) for m in messages if isinstance(m, dict)]
    return sentences[0][1] if len(sentences) == 1 else "\n\n".join(f"{role}: {text}" for role, text in sentences)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
