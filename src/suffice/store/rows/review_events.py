"""What people are asked about recorded runs, and what they say, as rows of the log.

    ReviewAsked, ReviewDrawn      a run is worth looking at; which runs the random control share was drawn from
    ReviewLeased, ReviewReturned  a reviewer has it, or gave it back
    VerdictGiven                  what a reviewer said; the label that comes of it is a `feedback` row beside it
    QuestionKept, SourcesKept     the text of a question, and what the steps of a caller's loop read and wrote, where
                                  its route's owner wants them kept

Keys are made of places in the queue: two reviewers cannot take the same one, and a form that is sent twice is one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.review.items import ControlDraw, ItemReturn, ReviewItem, ReviewLease, Source, Verdict
from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True)
class ReviewAsked:
    """Somebody should look at this run."""

    kind: ClassVar[Literal["review_asked"]] = "review_asked"
    item: ReviewItem

    @property
    def key(self) -> str:
        """What may exist once: the episode."""
        return self.item.episode_id

    @property
    def episode_id(self) -> str | None:
        """The episode that this row belongs to."""
        return self.item.episode_id

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.item.route


@dataclass(frozen=True, slots=True)
class ReviewDrawn(OfNoEpisode):
    """The random control share was drawn from one stretch of the log."""

    kind: ClassVar[Literal["review_drawn"]] = "review_drawn"
    drawing: ControlDraw

    @property
    def key(self) -> str:
        """What may exist once: a route's drawing of that number."""
        return f"{self.drawing.route}:{self.drawing.number}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.drawing.route


@dataclass(frozen=True, slots=True)
class ReviewLeased:
    """A reviewer has an item until a time."""

    kind: ClassVar[Literal["review_leased"]] = "review_leased"
    lease: ReviewLease

    @property
    def key(self) -> str:
        """What may exist once: that turn of that slot of the item."""
        return f"{self.lease.item}:{self.lease.slot}:{self.lease.turn}"

    @property
    def episode_id(self) -> str | None:
        """The episode that this row belongs to."""
        return self.lease.item

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.lease.route


@dataclass(frozen=True, slots=True)
class ReviewReturned:
    """A reviewer gave an item back without a verdict."""

    kind: ClassVar[Literal["review_returned"]] = "review_returned"
    returned: ItemReturn

    @property
    def key(self) -> str:
        """What may exist once: the end of that turn of that slot."""
        return f"{self.returned.item}:{self.returned.slot}:{self.returned.turn}"

    @property
    def episode_id(self) -> str | None:
        """The episode that this row belongs to."""
        return self.returned.item

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.returned.route


@dataclass(frozen=True, slots=True)
class VerdictGiven:
    """A reviewer said what is right."""

    kind: ClassVar[Literal["review_verdict"]] = "review_verdict"
    verdict: Verdict

    @property
    def key(self) -> str:
        """What may exist once: that revision of what this reviewer says of the item."""
        return f"{self.verdict.item}:{self.verdict.reviewer}:{self.verdict.revision}"

    @property
    def episode_id(self) -> str | None:
        """The episode that this row belongs to."""
        return self.verdict.item

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.verdict.route


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionText:
    """The text of a question. No other row holds any, but for the sources of its run."""

    episode_id: str
    route: str
    text: str  # as a person reads it
    expires_at_s: float  # Unix time after which nobody is shown it; erasing it is another matter


@dataclass(frozen=True, slots=True)
class QuestionKept:
    """The text of a question, kept because the route's owner wants it for reviewers."""

    kind: ClassVar[Literal["question_kept"]] = "question_kept"
    question: QuestionText

    @property
    def key(self) -> str:
        """What may exist once: the episode."""
        return self.question.episode_id

    @property
    def episode_id(self) -> str | None:
        """The episode that this row belongs to."""
        return self.question.episode_id

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.question.route


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the steps of a caller's loop read and wrote."""

    episode_id: str
    route: str
    sources: tuple[Source, ...]  # in the order of the steps
    is_cut: bool  # there was more than is kept
    expires_at_s: float  # Unix time after which nobody is shown them; erasing them is another matter


@dataclass(frozen=True, slots=True)
class SourcesKept:
    """What the steps of a caller's loop read and wrote, kept because the route's owner wants it for reviewers."""

    kind: ClassVar[Literal["sources_kept"]] = "sources_kept"
    kept: Sources

    @property
    def key(self) -> str:
        """What may exist once: the episode."""
        return self.kept.episode_id

    @property
    def episode_id(self) -> str | None:
        """The episode that this row belongs to."""
        return self.kept.episode_id

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.kept.route
