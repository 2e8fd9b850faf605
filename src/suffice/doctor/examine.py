"""Runs every experiment of an examination within its time limit, and derives settings from the verdicts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from suffice.doctor.experiments import EXPERIMENTS, Experiment, reachable
from suffice.doctor.session import Refusal, Result, ServerSession
from suffice.errors import UpstreamError
from suffice.settings import Driver
from suffice.types import Finding, Findings
from suffice.upstream.drivers import CONTINUES, DRIVERS, allows_probes, find_verdict, honoured, url_key

# Ways to close a thought, best first, with their experiments. A re-ask is an ordinary chat: there is nothing to test.
METHODS: Mapping[str, str] = {"native": "native_end", "raw": "raw", "prefill": "prefill"}


async def examine(
    session: ServerSession,
    *,
    upstream: str,
    examination_id: str,
    at_s: float,
    on_start: Callable[[str], None] = lambda _: None,
) -> Findings:
    """Run every experiment; stop if the server does not answer a chat request at all.

    upstream  its name in the settings, "" if it has none
    on_start  called with each experiment's name before it runs
    """
    entries = dict[str, Finding]()
    for name, (_, experiment) in EXPERIMENTS.items():
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
    (
        "vLLM: chat stream, thought in reasoning; chat stream, thought in reasoning_content; chat stream, usage in"
        " every chunk"
    ),
    "SGLang: chat stream, thought in reasoning_content, nulls beside it",
    "DeepSeek API: chat stream, comments, usage with the finish reason",
    "Ollama: chat stream, thought in reasoning",
    (
        "OpenAI API: chat stream, hidden thought, usage null until the end; responses stream; responses, one body;"
        " embeddings"
    ),
    "Anthropic API: messages stream with a thought; messages, one body",
    "OpenRouter: chat stream, comments, reasoning beside reasoning_details",
    "Mistral API: chat stream, thought in parts of the content",
    "the ways to close a thought and the budget fields of every driver but llama.cpp's",
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
    fields = {
        "stream_options.include_usage": "stream_usage",
        "logprobs": "logprobs_stream",
        "cache_prompt": "cache_prompt",
    }
    may = [field for field, experiment in fields.items() if honoured(findings, experiment)]
    return f"Fields that may be added to a request: {', '.join(may) or 'none'}."


_CAUTIONS: Mapping[str, tuple[tuple[str, ...], str]] = {  # experiment → verdicts, and their consequence
    "cancel": (
        ("no", "ignored"),
        "Caution: it keeps generating after a client disconnects, so a stop saves no work there.",
    ),
    "stream_usage": (
        ("no", "ignored"),
        "Caution: streams report no usage, so tokens are counted from pieces and marked as such.",
    ),
    "native_budget": (("ignored",), "Caution: it accepts a reasoning budget and ignores it."),
    "reasoning": (
        ("no",),
        "This model returned no thought, so a reasoning route has nothing to stop; a samples route works.",
    ),
}


def _cautions(findings: Findings, driver: Driver) -> list[str]:
    sentences = [text for name, (verdicts, text) in _CAUTIONS.items() if find_verdict(findings, name) in verdicts]
    if driver != "llama.cpp" and {"native", "raw"} & set(findings.finish):
        sentences.append(f"Driver {driver!r} has no template and no control endpoint: native and raw need llama.cpp's.")
    return sentences


def _settings(findings: Findings, name: str, url: str, driver: Driver) -> str:
    lines = [f"[upstreams.{name}]", f"url = {json.dumps(url)}", f'driver = "{driver}"']
    continues = DRIVERS[driver].prefill is not None
    usable = [m for m in findings.finish if driver == "llama.cpp" or (m == "prefill" and continues)]
    if findings.n_slots is not None:
        lines.append(f"slots = {findings.n_slots}")
    if usable:
        lines.append(f"finish = {json.dumps(usable)}")
    if usable and find_verdict(findings, "reasoning") == "no":
        lines.append("# no thought was observed: a reasoning route would have nothing to stop")
    return "\n".join(lines) + "\n"
