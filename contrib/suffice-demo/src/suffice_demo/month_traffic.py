"""Generated traffic of the simulated month: questions, answers, feedback, retrieval loops and stops."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from suffice.assurance.money import cost_of
from suffice.episode.vote import count_votes, deciding_sample
from suffice.review.items import Source
from suffice.settings import Prices
from suffice.store.rows.events import Event, QuestionText, Sources
from suffice.types import Feedback, Outcome, Query, Request, StepRecord, Usage
from suffice_demo.replayed_runs import ReplayedRun

MONTH: Final[Mapping[str, Any]] = tomllib.loads((Path(__file__).parent / "month.toml").read_text("utf-8"))
N_SAMPLES: Final = 16
SHARE: Final = 0.15  # of audits
N_MISLED: Final = 3  # first samples that agree on another answer
LATELY: Final = 500  # full runs behind an estimated saving
KEPT_S: Final = 60 * 86_400.0
PRICES: Final = Prices(input_usd_per_mtok=0.4, output_usd_per_mtok=1.6)
COMMENTS: Final = (
    "Right, and quick.",
    "I had to read it twice.",
    "Exactly what I needed.",
    "The unit is missing.",
    "It answered another question than mine.",
    "Good, thanks.",
    "=SUM(A1:A9) is what I meant, not the mean.",
)


@dataclass(frozen=True, slots=True)
class QuestionKind:
    name: str
    share: float  # of traffic
    p_easy: float  # P(easy: all samples agree)
    p_right: float  # P(the model's answer is right | not easy)
    n_words: int
    p_misled: float = 0.2  # P(the first samples agree on another answer | not easy)
    p_held: float = 0.62  # P(a sample gives the model's answer | not easy)


MATH: Final = (
    QuestionKind("arithmetic", 0.5, 0.86, 0.72, 14),
    QuestionKind("algebra", 0.3, 0.74, 0.62, 27),
    QuestionKind("geometry", 0.2, 0.58, 0.48, 41),
)
SUPPORT: Final = (QuestionKind("billing", 0.55, 0.7, 0.7, 22), QuestionKind("returns", 0.45, 0.6, 0.6, 35))
QUIZ: Final = (
    QuestionKind("facts", 0.5, 0.88, 0.8, 11, p_misled=0.2, p_held=0.9),
    QuestionKind("dates", 0.3, 0.78, 0.8, 16, p_misled=0.4, p_held=0.9),
    QuestionKind("riddles", 0.2, 0.5, 0.85, 38, p_misled=0.9, p_held=0.9),
)


def _episode_id(number: int, rng: random.Random, at_s: float) -> str:
    return f"ep_{int(at_s * 1e3):011x}{number:08x}{rng.randrange(2**32):08x}"


def _request(name: str, route: str, rng: random.Random, at_s: float, **fields: Any) -> Request:
    return Request(
        episode_id=name,
        route=route,
        received_at_s=at_s,
        certified=False,
        ungoverned=None,
        setup="demo",
        question_key=f"{rng.randrange(2**64):016x}",
        unit=f"{rng.randrange(2**64):016x}",
        **fields,
    )


def full_run(
    number: int, kinds: Sequence[QuestionKind], rng: random.Random, *, route: str, share: float, at_s: float
) -> tuple[Request, Outcome, str]:
    """Return a request with its full run and the right answer.

    kinds  question kinds to draw from
    share  of audits, [0, 1]; 0 and 1 need no draw
    """
    audit = share == 1 or (share > 0 and rng.random() < share)
    kind = kinds[0] if len(kinds) == 1 else rng.choices(kinds, [one.share for one in kinds])[0]
    right, easy = str(rng.randrange(2, 400)), rng.random() < kind.p_easy
    answers = _answers(right, kind, rng, easy=easy)
    answers = answers[: deciding_sample(answers, N_SAMPLES)]  # a decided vote draws no more
    vote = count_votes(answers)
    name = _episode_id(number, rng, at_s)
    tokens = [rng.randrange(90, 260) if easy else rng.randrange(180, 520) for _ in answers]
    n_words = max(4, int(rng.gauss(kind.n_words, kind.n_words / 4)))
    request = _request(
        name,
        route,
        rng,
        at_s,
        stream=rng.random() < 0.5,
        kind="samples",
        mode="enforce",
        model="house-8b",
        n_samples=N_SAMPLES,
        audit=audit,
        propensity=share if audit else 1 - share,
        policy_version="",
        query=Query(query_class=kind.name, planned_steps=N_SAMPLES, n_words=n_words, n_chars=6 * n_words),
    )
    outcome = Outcome(
        episode_id=name,
        end_reason="done",
        status=200,
        answer=vote.answer,
        response_id=f"chatcmpl-{name[3:]}",
        steps=tuple(_sample(answers[:n], tokens[n - 1]) for n in range(1, len(answers) + 1)),
        usage=Usage(prompt_tokens=4 * n_words + 60, completion_tokens=sum(tokens)),
        vote=vote.counts,
        model="house-8b",
        system_fingerprint="fp_7c1",
        duration_s=round(rng.uniform(1.4, 4.8), 3),
        ttft_s=round(rng.uniform(0.9, 2.2), 3),
        decision="nothing is stopped in an audit" if audit else "",
    )
    return request, outcome, right


def _answers(right: str, kind: QuestionKind, rng: random.Random, *, easy: bool) -> list[str]:
    held = right if rng.random() < (0.985 if easy else kind.p_right) else str(rng.randrange(2, 400))
    answers = [held if easy or rng.random() < kind.p_held else str(rng.randrange(2, 400)) for _ in range(N_SAMPLES)]
    if not easy and rng.random() < kind.p_misled:
        answers[:N_MISLED] = [str(rng.randrange(2, 400))] * N_MISLED
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
        reason=f"{count_votes(answers).counts[0][1]} of {len(answers)} samples agree",
    )


def make_feedback(outcome: Outcome, right: str, rng: random.Random) -> list[Feedback]:
    results, name = list[Feedback](), outcome.episode_id
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


def end_run(
    outcome: Outcome, replayed: ReplayedRun | None, full_tokens: list[int], *, acts: bool, because: str
) -> Outcome:
    """Return the run as its policy ends it, with its cost.

    full_tokens  of the route's full runs so far, all samples of a vote counted; a run without a stop is appended
    acts         whether the policy acts; if not, the step where it would have stopped is recorded
    because      reason for the stop, a short sentence
    """
    assert outcome.usage is not None
    if not acts:
        full_tokens.append(outcome.usage.completion_tokens if replayed is None else replayed.full_tokens)
    if replayed is None or replayed.stop_step is None:
        return priced(outcome)
    if not acts:
        return priced(replace(outcome, stop_step=replayed.stop_step, would_answer=replayed.answer))
    lately, steps = full_tokens[-LATELY:], outcome.steps[: replayed.stop_step]
    return priced(
        replace(
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
            tokens_saved_estimate=round(sum(lately) / len(lately)) - replayed.tokens if lately else None,
            estimate_method=f"mean of {len(lately)} full runs of this route",
            vote=count_votes([step.answer for step in steps]).counts,
            duration_s=round(outcome.duration_s * replayed.tokens / outcome.usage.completion_tokens, 3),
        )
    )


def priced(outcome: Outcome) -> Outcome:
    usage = outcome.usage
    assert usage is not None
    cost = cost_of(PRICES, prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens).total_usd
    saved = (outcome.tokens_saved_estimate or 0) * PRICES.output_usd_per_mtok / 1e6
    return replace(
        outcome,
        cost_usd=cost,
        overhead_usd=0.0,
        saved_usd_estimate=saved if outcome.stopped else None,
        would_cost_usd=cost if outcome.stop_step is not None and not outcome.stopped else None,
    )


def loop_events(number: int, rng: random.Random, *, at_s: float) -> tuple[Event, ...]:
    loop, route, until_s = MONTH["loops"][number % len(MONTH["loops"])], "research", at_s + KEPT_S
    rounds = list(enumerate(loop["rounds"], 1))
    answers = [one.get("answer") for _, one in rounds]
    stop = next((at for at, answer in enumerate(answers, 1) if at > 1 and answer and answer == answers[at - 2]), None)
    name = _episode_id(number, rng, at_s)
    steps = tuple(
        StepRecord(
            index=at,
            tokens=rng.randrange(40, 160),
            answer=one.get("answer"),
            confidence=None,
            entropy=None,
            answer_source="caller" if "answer" in one else None,
            probe_tokens=0,
            caller_action=one["action"],
            action="stop" if at == stop else "continue",
            reason="the same answer twice" if at == stop else "the answer has not settled",
            ctx_tokens=rng.randrange(300, 900),
        )
        for at, one in rounds
    )
    request = _request(
        name,
        route,
        rng,
        at_s,
        kind="rounds",
        mode="observe",
        model="",
        stream=False,
        n_samples=1,
        audit=False,
        propensity=1.0,
        policy_version="p-loop",
        endpoint="library",
        query=Query(query_class="lookup", n_words=9),
    )
    outcome = Outcome(
        episode_id=name,
        end_reason="done",
        status=200,
        answer=answers[-1],
        response_id=None,
        steps=steps,
        usage=Usage(prompt_tokens=sum(one.ctx_tokens for one in steps), completion_tokens=sum(s.tokens for s in steps)),
        stop_step=stop,
        would_answer=None if stop is None else answers[stop - 1],
        duration_s=6.0,
    )
    read = [Source(step=at, what="read", text=text) for at, one in rounds for text in one.get("read", ())]
    wrote = [Source(step=at, what="wrote", text=one["wrote"]) for at, one in rounds if "wrote" in one]
    return (
        request,
        QuestionText(episode_id=name, route=route, text=loop["question"], expires_at_s=until_s),
        Sources(episode_id=name, route=route, sources=(*read, *wrote), is_cut=False, expires_at_s=until_s),
        outcome,
    )
