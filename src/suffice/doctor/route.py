"""Examines a route: whether the answers of its full runs can be read, and how often the model agrees with itself.

No stop can agree with full runs more often than two full runs of one question agree with each other.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from suffice.assurance.guarantee import WINDOW_RUNS
from suffice.doctor.session import ServerSession
from suffice.errors import ConfigError, UpstreamError
from suffice.files import json_object
from suffice.scoring.base import Scorer
from suffice.types import Episode, RouteFindings

SENT_FIELDS = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "chat_template_kwargs")
CAP = 4_096  # tokens of a live run whose question sets no cap


@dataclass(slots=True)
class FullRunCounts:
    n_runs: int = 0
    n_extractable: int = 0
    n_repeats: int = 0  # questions, or pairs of runs of one question, that were compared
    n_agreeing: int = 0
    n_failed: int = 0  # live runs without a response from the server; not among `n_runs`

    def add(self, answer: str | None) -> None:
        self.n_runs += 1
        self.n_extractable += answer is not None

    def compare(self, one: str | None, other: str | None, scorer: Scorer) -> None:
        self.n_repeats += 1
        self.n_agreeing += one is not None and other is not None and scorer.match(one, other)


def is_full_run(episode: Episode) -> bool:
    """Return whether the run ended by itself and no policy could have stopped it.

    Runs that a policy merely did not stop are the hard ones, so they do not count.
    """
    request, outcome = episode.request, episode.outcome
    return (
        request.ungoverned is None
        and (request.mode != "enforce" or request.audit)
        and not outcome.stopped
        and outcome.end_reason in ("done", "truncated")
    )


def from_log(episodes: Iterable[Episode], scorer: Scorer) -> FullRunCounts:
    latest = [e for e in episodes if is_full_run(e)][-WINDOW_RUNS:]
    counts, waiting = FullRunCounts(), defaultdict[str, list[str | None]](list)
    for episode in latest:
        answer, key = episode.outcome.answer, episode.request.question_key
        counts.add(answer)
        if waiting[key]:
            counts.compare(waiting[key].pop(), answer, scorer)  # each run is in at most one pair
        else:
            waiting[key].append(answer)
    return counts


def read_route_questions(lines: Iterable[str], where: str) -> list[dict[str, Any]]:
    """Parse requests from JSON lines with `question` or `messages`, and sampling fields.

    Raise ConfigError with the line.
    """
    bodies = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = json_object(line, f"{where}:{number}")
        question, messages = item.get("question"), item.get("messages")
        if isinstance(question, str):
            messages = [{"role": "user", "content": question}]
        if not isinstance(messages, list) or not messages:
            raise ConfigError(f'{where}:{number}: has no question; need {{"question": "…"}} or messages')
        bodies.append({"messages": messages, **{k: item[k] for k in SENT_FIELDS if k in item}})
    if not bodies:
        raise ConfigError(f"{where}: contains no questions")
    return bodies


async def run_live(
    session: ServerSession, bodies: Sequence[Mapping[str, Any]], scorer: Scorer, *, n_repeats: int, concurrency: int
) -> FullRunCounts:
    """Run every question once and the first `n_repeats` again, `concurrency` at a time; count failures."""
    counts, gate = FullRunCounts(), asyncio.Semaphore(concurrency)

    async def answer(body: Mapping[str, Any]) -> tuple[bool, str | None]:
        async with gate:
            return await _run(session, body, scorer)

    ended = await asyncio.gather(*(answer(body) for body in (*bodies, *bodies[:n_repeats])))
    for answered, text in ended:
        if answered:
            counts.add(text)
        else:
            counts.n_failed += 1
    for (answered, one), (again, other) in zip(ended, ended[len(bodies) :], strict=False):
        if answered and again:
            counts.compare(one, other, scorer)
    return counts


async def _run(session: ServerSession, body: Mapping[str, Any], scorer: Scorer) -> tuple[bool, str | None]:
    capped = any(name in body for name in ("max_tokens", "max_completion_tokens"))
    sent = {"model": session.model, **({} if capped else {session.cap_field: CAP}), **body}
    try:
        async with asyncio.timeout(session.timeout_s):
            reply = await session.whole(sent)
    except (TimeoutError, UpstreamError):
        return False, None
    message = reply.choices[0].get("message") if reply.status == 200 and reply.choices else None
    if not isinstance(message, Mapping):
        return False, None
    content, settings = message.get("content"), session.settings
    text = content if isinstance(content, str) else ""
    _, closed, after = text.rpartition(settings.think_close)
    if not closed and text.lstrip().startswith(settings.think_open):
        after = ""  # the cap was reached inside the thought: there is no answer
    return True, scorer.extract(after)


def as_findings(counts: FullRunCounts, *, examination_id: str, route: str, scorer: str, at_s: float) -> RouteFindings:
    names = ("n_runs", "n_extractable", "n_repeats", "n_agreeing")
    seen = {name: getattr(counts, name) for name in names}
    return RouteFindings(examination_id=examination_id, route=route, scorer=scorer, at_s=at_s, **seen)
