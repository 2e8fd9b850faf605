"""Loops of retrieval in the made-up month: what each round found and answered, for a reviewer to read."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from suffice.review.question import Source
from suffice.store.rows.events import Event
from suffice.store.rows.records import QuestionText, Sources
from suffice.types import Outcome, Query, Request, StepRecord, Usage

ROUTE: Final = "research"
KEPT_S: Final = 60 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRound:
    """One round of a loop."""

    action: str
    answer: str | None  # that it would have given; None: none yet
    read: tuple[str, ...] = ()
    wrote: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoLoop:
    """A question with the rounds that its loop went through."""

    question: str
    rounds: tuple[DemoRound, ...]


LOOPS: Final = (
    DemoLoop(
        question="Which river flows through the capital of Austria?",
        rounds=(
            DemoRound(
                action="search",
                answer=None,
                read=("Austria lies in Central Europe. Its capital is Vienna.",),
                wrote="The capital first: Vienna. Now its river.",
            ),
            DemoRound(
                action="search",
                answer="danube",
                read=(
                    "Vienna lies on the Danube, at the eastern edge of the Alps.",
                    "The Wien, a small river, meets the Danube Canal inside the city.",
                ),
                wrote="The Danube, it seems.",
            ),
            DemoRound(
                action="answer", answer="danube", wrote="Two passages name the Danube; the Wien is the smaller one."
            ),
        ),
    ),
    DemoLoop(
        question="In which year was the bridge at Mostar built anew?",
        rounds=(
            DemoRound(
                action="search",
                answer="1566",
                read=("The Old Bridge of Mostar was finished in 1566.",),
                wrote="1566 is when it was built first.",
            ),
            DemoRound(
                action="search", answer="1566", read=("Its arch spans the Neretva at 24 metres above the water.",)
            ),
            DemoRound(
                action="search",
                answer="2004",
                read=("Destroyed in 1993, the bridge was rebuilt and opened in 2004.",),
                wrote="Built anew: that is 2004.",
            ),
            DemoRound(action="answer", answer="2004", wrote="The question asks for the second time."),
        ),
    ),
    DemoLoop(
        question="Who wrote the opera that opens the season most often at La Scala?",
        rounds=(
            DemoRound(action="search", answer="verdi", read=("La Scala opens its season on 7 December.",)),
            DemoRound(
                action="search",
                answer="verdi",
                read=("Verdi's operas have opened more seasons than any other's.",),
                wrote="Verdi, by a wide margin.",
            ),
            DemoRound(action="answer", answer="verdi"),
        ),
    ),
)


def walked(number: int, rng: random.Random, *, at_s: float) -> tuple[Event, ...]:
    """The rows of one run: asked, with its question; ended, with its sources. It runs in full and is observed."""
    loop = LOOPS[number % len(LOOPS)]
    stop = _stop(loop)
    name = f"ep_{int(at_s * 1e3):011x}{number:08x}{rng.randrange(2**32):08x}"
    steps = tuple(
        StepRecord(
            index=at + 1,
            tokens=rng.randrange(40, 160),
            answer=one.answer,
            confidence=None,
            entropy=None,
            answer_source=None if one.answer is None else "caller",
            probe_tokens=0,
            caller_action=one.action,
            action="stop" if at + 1 == stop else "continue",
            reason="the same answer twice" if at + 1 == stop else "the answer has not settled",
            ctx_tokens=rng.randrange(300, 900),
        )
        for at, one in enumerate(loop.rounds)
    )
    request = Request(
        episode_id=name,
        route=ROUTE,
        kind="rounds",
        mode="observe",
        model="",
        stream=False,
        n_samples=1,
        audit=False,
        propensity=1.0,
        policy_version="p-loop",
        certified=False,
        question_key=f"{rng.randrange(2**64):016x}",
        ungoverned=None,
        received_at_s=at_s,
        endpoint="library",
        query=Query(query_class="lookup", n_words=9),
        unit=f"{rng.randrange(2**64):016x}",
        setup="demo",
    )
    outcome = Outcome(
        episode_id=name,
        end_reason="done",
        status=200,
        answer=loop.rounds[-1].answer,
        response_id=None,
        steps=steps,
        usage=Usage(prompt_tokens=sum(one.ctx_tokens for one in steps), completion_tokens=sum(s.tokens for s in steps)),
        stop_step=stop,
        would_answer=None if stop is None else loop.rounds[stop - 1].answer,
        duration_s=6.0,
    )
    until_s = at_s + KEPT_S
    return (
        request,
        QuestionText(episode_id=name, route=ROUTE, text=loop.question, expires_at_s=until_s),
        Sources(episode_id=name, route=ROUTE, sources=_sources(loop), is_cut=False, expires_at_s=until_s),
        outcome,
    )


def _stop(loop: DemoLoop) -> int | None:
    """The first round whose answer is that of the one before."""
    answers = [one.answer for one in loop.rounds]
    return next((at + 1 for at in range(1, len(answers)) if answers[at] == answers[at - 1] is not None), None)


def _sources(loop: DemoLoop) -> tuple[Source, ...]:
    """What its rounds read, and then what they wrote."""
    read = [Source(step=at, what="read", text=text) for at, one in enumerate(loop.rounds, 1) for text in one.read]
    wrote = [Source(step=at, what="wrote", text=one.wrote) for at, one in enumerate(loop.rounds, 1) if one.wrote]
    return (*read, *wrote)
