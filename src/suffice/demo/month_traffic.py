"""Generated traffic of the made-up month: questions, answers, feedback, retrieval loops, and how runs end."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from suffice.assurance.money import cost_of
from suffice.replay.run import ReplayedRun
from suffice.review.items import Source
from suffice.settings import Prices
from suffice.store.people.alerts import Notice, plain
from suffice.store.rows.events import Event
from suffice.store.rows.records import QuestionText, Sources
from suffice.types import Feedback, Outcome, Query, Request, StepRecord, Usage

N_SAMPLES: Final = 8
P_MISLED: Final = 0.2  # of questions that are not easy
N_MISLED: Final = 3
MODEL: Final = "house-8b"
COMMENTS: Final = (
    "Right, and quick.",
    "I had to read it twice.",
    "Exactly what I needed.",
    "The unit is missing.",
    "It answered another question than mine.",
    "Good, thanks.",
    "=SUM(A1:A9) is what I meant, not the mean.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionKind:
    name: str
    share: float  # of traffic
    p_easy: float  # all samples of such a question agree
    p_right: float  # of what the model thinks of one that is not easy
    n_words: int
    p_misled: float = P_MISLED  # of those again: the first samples agree on something else
    p_held: float = 0.62  # of each sample of one that is not easy: it says what the model thinks


MATH: Final = (
    QuestionKind(name="arithmetic", share=0.5, p_easy=0.86, p_right=0.72, n_words=14),
    QuestionKind(name="algebra", share=0.3, p_easy=0.74, p_right=0.62, n_words=27),
    QuestionKind(name="geometry", share=0.2, p_easy=0.58, p_right=0.48, n_words=41),
)
SUPPORT: Final = (
    QuestionKind(name="billing", share=0.55, p_easy=0.7, p_right=0.7, n_words=22),
    QuestionKind(name="returns", share=0.45, p_easy=0.6, p_right=0.6, n_words=35),
)


def drawn_from(kinds: tuple[QuestionKind, ...], rng: random.Random) -> QuestionKind:
    return rng.choices(kinds, [one.share for one in kinds])[0]


def full_run(
    number: int,
    kind: QuestionKind,
    rng: random.Random,
    *,
    route: str,
    audit: bool,
    propensity: float,
    version: str,
    certified: bool,
    setup: str,
    at_s: float,
) -> tuple[Request, Outcome, str]:
    right, easy = str(rng.randrange(2, 400)), rng.random() < kind.p_easy
    answers = _answers(right, kind, rng, easy=easy)
    votes = {answer: answers.count(answer) for answer in dict.fromkeys(answers)}
    leader = max(votes, key=lambda answer: votes[answer])
    name = f"ep_{int(at_s * 1e3):011x}{number:08x}{rng.randrange(2**32):08x}"
    steps = tuple(
        _sample(answers[:n], rng.randrange(90, 260) if easy else rng.randrange(180, 520))
        for n in range(1, N_SAMPLES + 1)
    )
    n_words = max(4, int(rng.gauss(kind.n_words, kind.n_words / 4)))
    request = Request(
        episode_id=name,
        route=route,
        kind="samples",
        mode="enforce",
        model=MODEL,
        stream=rng.random() < 0.5,
        n_samples=N_SAMPLES,
        audit=audit,
        propensity=propensity,
        policy_version=version,
        certified=certified,
        question_key=f"{rng.randrange(2**64):016x}",
        ungoverned=None,
        received_at_s=at_s,
        unit=f"{rng.randrange(2**64):016x}",
        setup=setup,
        query=Query(query_class=kind.name, planned_steps=N_SAMPLES, n_words=n_words, n_chars=6 * n_words),
    )
    outcome = Outcome(
        episode_id=name,
        end_reason="done",
        status=200,
        answer=leader,
        response_id=f"chatcmpl-{name[3:]}",
        steps=steps,
        usage=Usage(prompt_tokens=4 * n_words + 60, completion_tokens=sum(step.tokens for step in steps)),
        vote=tuple(sorted(votes.items(), key=lambda one: -one[1])),
        model=MODEL,
        system_fingerprint="fp_7c1",
        duration_s=round(rng.uniform(1.4, 4.8), 3),
        ttft_s=round(rng.uniform(0.9, 2.2), 3),
        decision="nothing is stopped in an audit" if audit else "",
    )
    return request, outcome, right


def _answers(right: str, kind: QuestionKind, rng: random.Random, *, easy: bool) -> list[str]:
    """What each sample says, in their order."""
    held = right if rng.random() < (0.985 if easy else kind.p_right) else str(rng.randrange(2, 400))
    answers = [held if easy or rng.random() < kind.p_held else str(rng.randrange(2, 400)) for _ in range(N_SAMPLES)]
    if not easy and rng.random() < kind.p_misled:
        answers[:N_MISLED] = [str(rng.randrange(2, 400))] * N_MISLED  # the first samples agree on something else
    return answers


def _sample(answers: list[str], tokens: int) -> StepRecord:
    return StepRecord(
        index=len(answers),
        tokens=tokens,
        answer=answers[-1],
        answer_source="sample",
        confidence=None,
        entropy=None,
        probe_tokens=0,
        action="continue",
        reason=f"{votes_so_far(answers)} of {len(answers)} samples agree",
    )


def votes_so_far(answers: list[str]) -> int:
    return max(answers.count(answer) for answer in set(answers))


def make_feedback(outcome: Outcome, right: str, rng: random.Random) -> list[Feedback]:
    results = list[Feedback]()
    name = outcome.episode_id
    if rng.random() < 0.72:
        results.append(Feedback(feedback_id=f"gold:{name}", episode_id=name, gold=right, source="exact-match"))
    if rng.random() < 0.2:
        pleased = outcome.answer == right and rng.random() < 0.9
        results.append(
            Feedback(
                feedback_id=f"user:{name}",
                episode_id=name,
                rating=rng.choice((4, 5) if pleased else (1, 2, 3)),
                comment=rng.choice(COMMENTS) if rng.random() < 0.3 else None,
                source="user",
            )
        )
    return results


PRICES: Final = Prices(input_usd_per_mtok=0.4, output_usd_per_mtok=1.6)
LATELY: Final = 500  # full runs that a saving is estimated by


def stopped(outcome: Outcome, replayed: ReplayedRun | None, full_tokens: Sequence[int], *, because: str) -> Outcome:
    """The run as it ends where it is stopped, with what that is estimated to have saved.

    full_tokens  of the full runs of its route so far
    because      why it is stopped, a short sentence
    """
    if replayed is None or replayed.stop_step is None or outcome.usage is None:
        return outcome
    lately = full_tokens[-LATELY:]
    saved = max(0, round(sum(lately) / max(1, len(lately)) - replayed.tokens))
    steps = outcome.steps[: replayed.stop_step]
    return replace(
        outcome,
        end_reason="stopped",
        stopped=True,
        stop_reason="suffices",
        stop_step=replayed.stop_step,
        answer=replayed.answer,
        would_answer=replayed.answer,
        finish_method="vote",
        decision=because,
        usage=replace(outcome.usage, completion_tokens=replayed.tokens),
        steps=(*steps[:-1], replace(steps[-1], action="stop", reason=because)),
        tokens_saved_estimate=saved,
        estimate_method=f"mean of {len(lately)} full runs of this route",
        vote=_counted([step.answer for step in steps if step.answer]),
        duration_s=round(outcome.duration_s * replayed.tokens / outcome.usage.completion_tokens, 3),
    )


def noted(outcome: Outcome, replayed: ReplayedRun | None) -> Outcome:
    if replayed is None or replayed.stop_step is None:
        return outcome
    return replace(outcome, stop_step=replayed.stop_step, would_answer=replayed.answer)


def priced(outcome: Outcome) -> Outcome:
    assert outcome.usage is not None
    cost = cost_of(
        PRICES, prompt_tokens=outcome.usage.prompt_tokens, completion_tokens=outcome.usage.completion_tokens
    ).total_usd
    saved = (outcome.tokens_saved_estimate or 0) * PRICES.output_usd_per_mtok / 1e6
    return replace(
        outcome,
        cost_usd=cost,
        overhead_usd=0.0,
        saved_usd_estimate=saved if outcome.stopped else None,
        would_cost_usd=cost if outcome.stop_step is not None and not outcome.stopped else None,
    )


def _counted(answers: list[str]) -> tuple[tuple[str, int], ...]:
    return tuple((one, answers.count(one)) for one in dict.fromkeys(answers))


LOOP_ROUTE: Final = "research"
KEPT_S: Final = 60 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRound:
    action: str
    answer: str | None  # that it would have given; None: none yet
    read: tuple[str, ...] = ()
    wrote: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoLoop:
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


def loop_events(number: int, rng: random.Random, *, at_s: float) -> tuple[Event, ...]:
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
        route=LOOP_ROUTE,
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
    sources = Sources(episode_id=name, route=LOOP_ROUTE, sources=_sources(loop), is_cut=False, expires_at_s=until_s)
    return (
        request,
        QuestionText(episode_id=name, route=LOOP_ROUTE, text=loop.question, expires_at_s=until_s),
        sources,
        outcome,
    )


def _stop(loop: DemoLoop) -> int | None:
    answers = [one.answer for one in loop.rounds]
    return next((at + 1 for at in range(1, len(answers)) if answers[at] == answers[at - 1] is not None), None)


def _sources(loop: DemoLoop) -> tuple[Source, ...]:
    read = [Source(step=at, what="read", text=text) for at, one in enumerate(loop.rounds, 1) for text in one.read]
    wrote = [Source(step=at, what="wrote", text=one.wrote) for at, one in enumerate(loop.rounds, 1) if one.wrote]
    return (*read, *wrote)


MOST_BYTES: Final = 64 * 1024
MOST_TEXT: Final = 400


@dataclass(slots=True)
class Took:
    name: str

    def tell(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:  # noqa: ARG002 - as sinks are asked
        return None


@contextmanager
def webhook(say: Callable[[str], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(min(MOST_BYTES, int(self.headers.get("content-length") or 0)))
            say(_text(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so; Any: as it has
            """Say nothing of each request."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/alerts"
        finally:
            server.shutdown()


def _text(body: bytes) -> str:
    try:
        return plain(str(json.loads(body)["text"]), MOST_TEXT)
    except (ValueError, KeyError, TypeError):
        return "something that is no alert"
