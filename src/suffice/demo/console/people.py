"""Questions, answers and people of the made-up month: what is asked, how sure the model is, what users say of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

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
class Kind:
    name: str
    share: float  # of traffic
    p_easy: float  # all samples of such a question agree
    p_right: float  # of what the model thinks of one that is not easy
    n_words: int
    p_misled: float = P_MISLED  # of those again: the first samples agree on something else
    p_held: float = 0.62  # of each sample of one that is not easy: it says what the model thinks


MATH: Final = (
    Kind(name="arithmetic", share=0.5, p_easy=0.86, p_right=0.72, n_words=14),
    Kind(name="algebra", share=0.3, p_easy=0.74, p_right=0.62, n_words=27),
    Kind(name="geometry", share=0.2, p_easy=0.58, p_right=0.48, n_words=41),
)
SUPPORT: Final = (
    Kind(name="billing", share=0.55, p_easy=0.7, p_right=0.7, n_words=22),
    Kind(name="returns", share=0.45, p_easy=0.6, p_right=0.6, n_words=35),
)


def drawn_from(kinds: tuple[Kind, ...], rng: random.Random) -> Kind:
    return rng.choices(kinds, [one.share for one in kinds])[0]


def full_run(
    number: int,
    kind: Kind,
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


def _answers(right: str, kind: Kind, rng: random.Random, *, easy: bool) -> list[str]:
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
    told = list[Feedback]()
    name = outcome.episode_id
    if rng.random() < 0.72:
        told.append(Feedback(feedback_id=f"gold:{name}", episode_id=name, gold=right, source="exact-match"))
    if rng.random() < 0.2:
        pleased = outcome.answer == right and rng.random() < 0.9
        told.append(
            Feedback(
                feedback_id=f"user:{name}",
                episode_id=name,
                rating=rng.choice((4, 5) if pleased else (1, 2, 3)),
                comment=rng.choice(COMMENTS) if rng.random() < 0.3 else None,
                source="user",
            )
        )
    return told
