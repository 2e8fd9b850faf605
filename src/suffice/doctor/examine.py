"""Runs every experiment of an examination within its time limit, and derives settings from the verdicts."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from suffice.assurance.guarantee import WINDOW_RUNS
from suffice.doctor.experiments import EXPERIMENTS, Experiment, reachable
from suffice.doctor.session import Refusal, Result, ServerSession
from suffice.errors import UpstreamError
from suffice.scoring.scorer import Scorer
from suffice.settings import Driver
from suffice.types import Episode, Finding, Findings, RouteFindings
from suffice.upstream.assemble import first_message
from suffice.upstream.drivers import CONTINUES, DRIVERS, allows_probes, find_verdict, honoured, url_key

# ---- Examines a route: whether the answers of its full runs can be read, and how often the model agrees with itself

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
    message, settings = first_message(reply.body), session.settings
    if reply.status != 200 or not message:
        return False, None
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    _, closed, after = text.rpartition(settings.think_close)
    if not closed and text.lstrip().startswith(settings.think_open):
        after = ""  # the cap was reached inside the thought: there is no answer
    return True, scorer.extract(after)


def as_findings(counts: FullRunCounts, *, examination_id: str, route: str, scorer: str, at_s: float) -> RouteFindings:
    names = ("n_runs", "n_extractable", "n_repeats", "n_agreeing")
    seen = {name: getattr(counts, name) for name in names}
    return RouteFindings(examination_id=examination_id, route=route, scorer=scorer, at_s=at_s, **seen)


# What settings and probes follow from; the rest of the table is for people.
SHORT = (
    *("reachable", "models", "slots", "context", "max_tokens", "stream_usage", "reasoning", "logprobs_stream"),
    *("prefill", "raw", "native_end", "prefix_cache", "cancel"),
)

# Ways to close a thought, best first, with their experiments. A re-ask is an ordinary chat: there is nothing to test.
METHODS: Mapping[str, str] = {"native": "native_end", "raw": "raw", "prefill": "prefill"}


async def examine(
    session: ServerSession,
    *,
    upstream: str,
    examination_id: str,
    at_s: float,
    only: Collection[str] = EXPERIMENTS,
    on_start: Callable[[str], None] = lambda _: None,
) -> Findings:
    """Run experiments; stop if the server does not answer a chat request at all.

    upstream  its name in the settings, "" if it has none
    only      names of the experiments that are run
    on_start  called with each experiment's name before it runs
    """
    entries = dict[str, Finding]()
    for name, (_, experiment) in EXPERIMENTS.items():
        if name not in only:
            continue
        on_start(name)
        result = await _within(session, experiment)
        entries[name] = Finding(experiment=name, verdict=result.verdict, evidence=result.evidence)
        if name == "reachable" and result.verdict != "yes":
            break
    return Findings(
        examination_id=examination_id,
        upstream=upstream,
        url_key=url_key(session.settings.url),
        model=session.model,
        at_s=at_s,
        findings=tuple(entries.values()),
        n_slots=session.n_slots,
        context_tokens=session.context_tokens,
        finish=tuple(method for method, name in METHODS.items() if name in entries and entries[name].verdict == "yes"),
    )


async def _within(session: ServerSession, experiment: Experiment) -> Result:
    try:
        async with asyncio.timeout(session.timeout_s):
            return await experiment(session)
    except Refusal as refusal:
        return refusal.result
    except TimeoutError:
        return Result("unclear", f"did not finish within {session.timeout_s:g} s (--timeout)")
    except UpstreamError as error:
        return Result("no" if experiment is reachable else "unclear", error.for_operator())


# What was written from documentation and not seen at a live server; no figure is taken from it. First, by engine, the
# shapes of answers that are `synthetic` in tests/wire/streams/.
NOT_VERIFIED = (
    "vLLM before 0.10: chat stream, thought in reasoning_content",
    "DeepSeek API: chat stream, comments, usage with the finish reason",
    "Ollama: chat stream, thought in reasoning",
    (
        "OpenAI API: chat stream, hidden thought, usage null until the end; responses stream; responses, one body;"
        " embeddings"
    ),
    "Anthropic API: messages stream with a thought; messages, one body",
    "OpenRouter: chat stream, comments, reasoning beside reasoning_details",
    "Mistral API: chat stream, thought in parts of the content",
    "the ways to close a thought and the budget fields of every driver but those of llama.cpp, vLLM and SGLang",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    driver: Driver
    finish: tuple[str, ...]  # ways to close a thought, best first; (): none
    may_probe: bool  # whether it continues a text and caches prefixes
    sentences: tuple[str, ...]  # for people
    settings: str  # a block for suffice.toml


def recommend(findings: Findings, *, name: str, url: str, driver: Driver | None) -> Recommendation:
    """Summarise what the upstream supports, with a settings block for it.

    name    of the upstream in the settings block
    driver  as the operator chose it; None: the one that offers what was observed
    """
    chosen = driver or _driver(findings)
    return Recommendation(
        driver=chosen,
        finish=findings.finish,
        may_probe=allows_probes(findings),
        sentences=(_stops(findings), _probes(findings), _added(findings), *_cautions(findings, chosen)),
        settings=_settings(findings, name, url, chosen),
    )


def _driver(findings: Findings) -> Driver:
    if {"native", "raw"} & set(findings.finish):
        return "llama.cpp"
    # A message was continued by vLLM's request fields; the plain driver would not send them.
    return "vllm" if "prefill" in findings.finish else "openai"


def _stops(findings: Findings) -> str:
    if not findings.finish:
        return (
            "Stops on a reasoning route: no way to close a thought was observed; only asking again (re-ask)"
            " remains. A samples route needs none."
        )
    return f"Stops on a reasoning route: closed by {', then '.join(findings.finish)}."


def _probes(findings: Findings) -> str:
    if allows_probes(findings):
        return "Probes in observe mode: allowed, because the server continues a text and caches prefixes."
    missing = []
    if not any(honoured(findings, way) for way in CONTINUES):
        missing.append("the server does not continue a text")
    if not honoured(findings, "prefix_cache"):
        seen = find_verdict(findings, "prefix_cache") in ("no", "ignored")
        missing.append("the server caches no prefixes" if seen else "no cached prefix was observed")
    return f"Probes in observe mode: not sent, because {' and '.join(missing)}."


def _added(findings: Findings) -> str:
    fields = {"stream_options.include_usage": "stream_usage", "logprobs": "logprobs_stream"}
    may = [field for field, experiment in fields.items() if honoured(findings, experiment)]
    return f"Fields that may be added to a request: {', '.join(may) or 'none'}."


_CAUTIONS: Mapping[str, tuple[tuple[str, ...], str]] = {  # experiment → verdicts, and their consequence
    "cancel": (
        ("no", "ignored"),
        (
            "Caution: it keeps generating after a client disconnects, so a stop saves no work there, and none is made"
            " that cancels a call, unless `cancel_saves` says otherwise."
        ),
    ),
    "stream_usage": (
        ("no", "ignored"),
        "Caution: streams report no usage, so tokens are counted from pieces and marked as such.",
    ),
    "effort": (("ignored",), "Caution: it accepts a reasoning effort and ignores it."),
    "native_budget": (("ignored",), "Caution: it accepts a reasoning budget and ignores it."),
    "reasoning": (
        ("no",),
        "This model returned no thought, so a reasoning route has nothing to stop; a samples route works.",
    ),
}


def _cautions(findings: Findings, driver: Driver) -> list[str]:
    sentences = [text for name, (verdicts, text) in _CAUTIONS.items() if find_verdict(findings, name) in verdicts]
    if unusable := [method for method in findings.finish if method not in _usable(findings, driver)]:
        sentences.append(f"Driver {driver!r} cannot use {' and '.join(unusable)}, which the server supports.")
    return sentences


def _usable(findings: Findings, driver: Driver) -> list[str]:
    """Return the ways to close a thought that were observed and that the driver can request."""
    facts = DRIVERS[driver]
    has = {"native": facts.control, "raw": facts.writes_prompt, "prefill": facts.prefill}
    return [method for method in findings.finish if has.get(method) is not None]


def _settings(findings: Findings, name: str, url: str, driver: Driver) -> str:
    lines = [f"[upstreams.{name}]", f"url = {json.dumps(url)}", f'driver = "{driver}"']
    usable = _usable(findings, driver)
    if findings.n_slots is not None:
        lines.append(f"slots = {findings.n_slots}")
    if usable:
        lines.append(f"finish = {json.dumps(usable)}")
    return "\n".join(lines) + "\n"
