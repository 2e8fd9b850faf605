"""The review queue as a pure fold over events: leases of items, their verdicts, and the resulting label.

If verdicts disagree, a third person decides. A verdict after its lease expired is never lost: it fills the slot if that
is still free; otherwise it is kept without a slot, and the reviewer is notified. A form sent twice is one verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final, Literal, TypeAlias

from suffice.review.items import (
    ADJUDICATOR,
    MOST_TEXT,
    ControlDraw,
    ItemReturn,
    ReviewItem,
    ReviewLease,
    Verdict,
    VerdictForm,
    allowed_verdicts,
)
from suffice.types import Feedback

State: TypeAlias = Literal[
    "open",  # a reviewer can take it
    "leased",  # every empty slot is leased
    "third",  # verdicts contradict each other: a third person has to decide
    "settled",  # the right answer is known
    "undecided",  # the third person could not decide either
    "lapsed",  # expired: no reviewer gets it any more
]
Record: TypeAlias = ReviewItem | ControlDraw | ReviewLease | ItemReturn | Verdict
REVIEWER: Final = "reviewer"  # the source of labels from verdicts, as `assurance.labels` ranks it


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResolution:
    full_right: bool | None
    early_right: bool | None
    corrected: str | None
    verdicts: Sequence[Verdict] = field(compare=False)  # all with this result; the adjudicator's, or independent ones


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemState:
    item: ReviewItem
    verdicts: tuple[Verdict, ...] = ()  # the latest of each reviewer, in the order of their first ones
    leases: tuple[ReviewLease, ...] = ()  # all of them, oldest first
    returned: frozenset[tuple[int, int]] = frozenset()  # (slot, turn)

    def filled(self, slot: int) -> Verdict | None:
        return next((one for one in self.verdicts if one.slot == slot), None)

    def verdict_of(self, reviewer: str) -> Verdict | None:
        return next((one for one in self.verdicts if one.reviewer == reviewer), None)

    def lease_of(self, slot: int) -> ReviewLease | None:
        return next((one for one in reversed(self.leases) if one.slot == slot), None)

    def holder(self, slot: int, now_s: float) -> ReviewLease | None:
        lease = self.lease_of(slot)
        if lease is None or self.filled(slot) is not None or (slot, lease.turn) in self.returned:
            return None
        return lease if now_s < lease.until_s else None

    def held_by(self, reviewer: str, now_s: float) -> ReviewLease | None:
        return next((h for s in self.slots if (h := self.holder(s, now_s)) and h.reviewer == reviewer), None)

    @property
    def independent(self) -> list[Verdict]:
        result = (self.filled(slot) for slot in range(1, self.item.n_reviewers + 1))
        return [one for one in result if one is not None]

    @property
    def needs_third(self) -> bool:
        independent = self.independent
        if len(independent) < self.item.n_reviewers:
            return False
        corrected = {one.corrected.casefold() for one in independent if one.corrected is not None}
        contradict = len({one.category for one in independent}) > 1 or len(corrected) > 1
        return contradict or any(one.unsure for one in independent)

    @property
    def slots(self) -> range:
        return range(ADJUDICATOR, ADJUDICATOR + 1) if self.needs_third else range(1, self.item.n_reviewers + 1)

    def free(self, now_s: float) -> int | None:
        return next((s for s in self.slots if self.filled(s) is None and self.holder(s, now_s) is None), None)

    @property
    def resolution(self) -> ItemResolution | None:
        """What the verdicts say together; None: not known (yet)."""
        third, verdicts = self.filled(ADJUDICATOR), self.independent
        if third is not None:
            verdicts = [] if third.unsure else [third]
        elif self.needs_third or len(verdicts) < self.item.n_reviewers:
            verdicts = []
        if not verdicts:
            return None
        return ItemResolution(
            full_right=verdicts[0].full_right,
            early_right=verdicts[0].early_right,
            corrected=next((one.corrected for one in verdicts if one.corrected is not None), None),
            verdicts=verdicts,
        )

    @property
    def outcome(self) -> State | None:
        """The final state, settled or undecided; None: neither yet."""
        if self.resolution is not None:
            return "settled"
        return "undecided" if self.filled(ADJUDICATOR) is not None else None

    def state(self, now_s: float) -> State:
        outcome = self.outcome
        if outcome is not None:
            return outcome
        if self.item.open_until_s is not None and now_s >= self.item.open_until_s:
            return "lapsed"
        if self.free(now_s) is None:
            return "leased"
        return "third" if self.needs_third else "open"

    def may_take(self, reviewer: str, now_s: float) -> bool:
        """Whether this reviewer can take it now; nobody judges an item twice."""
        return self.state(now_s) in ("open", "third") and self.verdict_of(reviewer) is None

    def after(self, record: ReviewLease | ItemReturn | Verdict) -> ItemState:
        if isinstance(record, ItemReturn):
            return replace(self, returned=self.returned | {(record.slot, record.turn)})
        if isinstance(record, ReviewLease):
            known = self.lease_of(record.slot)
            if known is not None and known.turn >= record.turn:
                return self
            return replace(self, leases=(*self.leases, record))
        before = self.verdict_of(record.reviewer)
        if before is None:
            if record.slot is not None and self.filled(record.slot) is not None:
                record = replace(record, slot=None)  # another reviewer was quicker
            return replace(self, verdicts=(*self.verdicts, record))
        if before.revision >= record.revision:
            return self
        record = replace(record, slot=before.slot)
        return replace(self, verdicts=tuple(record if one is before else one for one in self.verdicts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    places: Mapping[str, ItemState] = field(default_factory=dict)  # by episode, in the order in which they were queued
    drawings: Mapping[str, tuple[ControlDraw, ...]] = field(default_factory=dict)  # by route, oldest first
    done: Mapping[str, State] = field(default_factory=dict)  # items in a final state

    def after(self, records: Iterable[Record]) -> Queue:
        places = dict(self.places)
        drawings = dict(self.drawings)
        done = dict(self.done)
        touched = set[str]()
        for record in records:
            if isinstance(record, ReviewItem):
                places.setdefault(record.episode_id, ItemState(item=record))
            elif isinstance(record, ControlDraw):
                drawings[record.route] = (*drawings.get(record.route, ()), record)
            elif record.item in places:
                places[record.item] = places[record.item].after(record)
                touched.add(record.item)
        for name in touched:
            done.pop(name, None)
            if (state := places[name].outcome) is not None:
                done[name] = state
        return Queue(places=places, drawings=drawings, done=done)

    def of_tenants(self, tenants: Collection[str] | None) -> Queue:
        """Return the items about runs of these tenants; None: all of them."""
        if tenants is None:
            return self
        return replace(self, places={name: one for name, one in self.places.items() if one.item.tenant in tenants})

    def of(self, route: str | None = None) -> Iterator[ItemState]:
        return (one for one in self.places.values() if route is None or one.item.route == route)

    def unfinished(self, route: str | None = None) -> Iterator[ItemState]:
        return (one for one in self.of(route) if one.item.episode_id not in self.done)

    def waiting(self, *, now_s: float, route: str | None = None, reviewer: str | None = None) -> list[ItemState]:
        waiting = (one for one in self.unfinished(route) if one.state(now_s) in ("open", "third"))
        return sorted((one for one in waiting if reviewer is None or one.verdict_of(reviewer) is None), key=_urgency)

    def counts(self, *, now_s: float, route: str | None = None) -> dict[State, int]:
        result: dict[State, int] = dict.fromkeys(("open", "leased", "third", "settled", "undecided", "lapsed"), 0)
        for one in self.of(route):
            result[self.done.get(one.item.episode_id) or one.state(now_s)] += 1
        return result

    def items_on(self, day: int) -> dict[str, tuple[int, int]]:
        """Items that count for a day, by route: picked on purpose, and drawn at random."""
        entries = dict[str, tuple[int, int]]()
        for place in self.places.values():
            item = place.item
            if item.day == day and item.why != "person":
                n_chosen, n_drawn = entries.get(item.route, (0, 0))
                is_drawn = item.why == "control"
                entries[item.route] = n_chosen + (not is_drawn), n_drawn + is_drawn
        return entries


EMPTY: Final = Queue()


def next_for(
    queue: Queue, reviewer: str, *, now_s: float, route: str | None = None, third: bool = False
) -> tuple[ReviewLease, bool] | None:
    """Select a reviewer's next item (`third`: with contradicting verdicts); return its lease and whether it is new."""
    for place in queue.unfinished(route):
        held = place.held_by(reviewer, now_s)
        if held is not None and (place.needs_third or not third):
            return held, False
    for place in queue.waiting(now_s=now_s, route=route, reviewer=reviewer):
        taken = lease_item(place, reviewer, now_s=now_s)
        if taken is not None and (place.needs_third or not third):
            return taken, True
    return None


def lease_item(place: ItemState, reviewer: str, *, now_s: float) -> ReviewLease | None:
    """Lease one item; None: this reviewer cannot have it now."""
    slot = place.free(now_s)
    if slot is None or not place.may_take(reviewer, now_s):
        return None
    before = place.lease_of(slot)
    return ReviewLease(
        item=place.item.episode_id,
        route=place.item.route,
        slot=slot,
        turn=1 if before is None else before.turn + 1,
        reviewer=reviewer,
        leased_at_s=now_s,
        until_s=now_s + place.item.lease_s,
    )


def give_back(place: ItemState, reviewer: str, reason: str, *, now_s: float) -> ItemReturn | None:
    """Return an item without a verdict; None: this reviewer does not hold it."""
    held = place.held_by(reviewer, now_s)
    if held is None:
        return None
    return ItemReturn(
        item=held.item,
        route=held.route,
        slot=held.slot,
        turn=held.turn,
        reviewer=reviewer,
        reason=reason,
        returned_at_s=now_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    message: str  # message for the reviewer, one sentence
    verdict: Verdict | None = None  # None: a repeat, which changes nothing
    lease: ReviewLease | None = None  # of a free slot, taken with it
    label: Feedback | None = None  # the new label; None: not yet, or unchanged


def accept_verdict(place: ItemState, form: VerdictForm, *, now_s: float) -> Submission | str:
    item, allowed = place.item, allowed_verdicts(place.item.shows)
    if not form.reviewer.strip():
        return "a verdict needs the reviewer's name"
    if form.word not in allowed:
        return f"{form.word}: not a verdict for this item; allowed: {', '.join(allowed)}"
    if max(len(form.reason), len(form.corrected or "")) > MOST_TEXT:
        return f"reason and corrected answer: at most {MOST_TEXT:,} characters each"
    unsure, reason = form.word == "unsure", form.reason.strip()
    corrected = None if unsure else (form.corrected or "").strip() or None
    before = place.verdict_of(form.reviewer)
    if before is not None and (before.category, before.corrected, before.reason) == (form.word, corrected, reason):
        return Submission(message="you already gave this verdict; nothing changed")
    lease, slot, turn, late, result = _slot_for(place, form.reviewer, before, now_s)
    verdict = Verdict(
        item=item.episode_id,
        route=item.route,
        reviewer=form.reviewer,
        revision=1 if before is None else before.revision + 1,
        slot=slot,
        turn=turn,
        full_right=None if unsure or item.shows == "early" else form.word in ("both", "full", "right"),
        early_right=None if unsure or item.shows == "full" else form.word in ("both", "early", "right"),
        corrected=corrected,
        unsure=unsure,
        reason=reason,
        given_at_s=now_s,
        late=late,
        before="" if before is None else before.category,
    )
    then = place.after(verdict)
    label = None if then.resolution == place.resolution else label_of(then)
    return Submission(message=f"{result}; {_next_step(then, label)}", verdict=verdict, lease=lease, label=label)


def _slot_for(
    place: ItemState, reviewer: str, before: Verdict | None, now_s: float
) -> tuple[ReviewLease | None, int | None, int, bool, str]:
    """Return (new lease, slot, its turn, whether it is late, message for the reviewer)."""
    if before is not None:
        return None, before.slot, before.turn, before.late, f"this replaces your verdict {before.category!r}"
    held = place.held_by(reviewer, now_s)
    if held is not None:
        return None, held.slot, held.turn, False, "taken"
    own = next((one for one in reversed(place.leases) if one.reviewer == reviewer), None)
    late = own is not None and now_s >= own.until_s
    over = f"your lease expired {now_s - own.until_s:,.0f} s ago" if own is not None and late else ""
    lease = lease_item(place, reviewer, now_s=now_s)
    if lease is not None:
        free = f"{over}, and nobody else took the item: your verdict counts" if over else "taken, without a lease"
        return lease, lease.slot, lease.turn, late, free
    known = {one.reviewer for one in place.leases} | {one.reviewer for one in place.independent}
    others = ", ".join(sorted(known - {reviewer}))
    why = f"{over}, and the item was leased to {others}" if over and others else over or "no slot of the item is free"
    return None, None, own.turn if own is not None else 0, late, f"{why}: your verdict is kept beside the others"


def _next_step(place: ItemState, label: Feedback | None) -> str:
    if label is not None:
        return "the label is written"
    if place.resolution is not None:
        return "the label is unchanged"
    if place.filled(ADJUDICATOR) is not None:
        return "the adjudicator could not decide, so there is no label"
    if place.needs_third:
        return "a third reviewer has to decide"
    left = place.item.n_reviewers - len(place.independent)
    return f"{left} more {'reviewer has' if left == 1 else 'reviewers have'} to judge it"


def label_of(place: ItemState) -> Feedback | None:
    """The label that the verdicts resolve to. Its source is the queue: two reviewers' labels could contradict."""
    resolution, item = place.resolution, place.item
    if resolution is None:
        return None
    known = resolution.corrected
    if known is None and resolution.early_right:
        known = item.early_answer
    if known is None and resolution.full_right:
        known = item.full_answer
    last = max(resolution.verdicts, key=lambda one: one.given_at_s)
    names = ", ".join(one.reviewer for one in resolution.verdicts)
    return Feedback(
        feedback_id=f"review:{item.episode_id}:{last.reviewer}:{last.revision}",
        episode_id=item.episode_id,
        correct=resolution.early_right if item.shows == "early" else resolution.full_right,
        gold=known,
        answer=resolution.corrected,
        source=REVIEWER,
        reason="; ".join(one.reason for one in resolution.verdicts if one.reason) or None,
        comment=f"adjudicated by {names}" if last.slot == ADJUDICATOR else f"reviewed by {names}",
        sender="review",
        request_reason=item.why,
        door="review",
    )


def _urgency(place: ItemState) -> tuple[bool, float, float, float]:
    item, due_s = place.item, place.item.deadline_s
    return not place.needs_third, -item.priority, inf if due_s is None else due_s, item.requested_at_s
