"""Runs every experiment of an examination within its time limit, and derives settings from the verdicts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from suffice.doctor.experiments import RUN, Experiment, reachable
from suffice.doctor.session import Refusal, Result, ServerSession
from suffice.errors import UpstreamError
from suffice.settings import Driver
from suffice.types import Finding, Findings
from suffice.upstream.drivers import CONTINUES, DRIVERS, allows_probes, find_verdict, honoured, url_key

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
    for name, experiment in RUN.items():
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
        n_slots=session.facts.n_slots,
        context_tokens=session.facts.context_tokens,
        finish=ways_to_finish(entries),
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


def ways_to_finish(entries: Mapping[str, Finding]) -> tuple[str, ...]:
    order = DRIVERS["llama.cpp"].methods  # the driver that supports all of them
    tried = [m for m in order if m in METHODS]  # a re-ask is an ordinary chat: there is nothing to test
    return tuple(m for m in tried if (one := entries.get(METHODS[m])) is not None and one.verdict == "yes")


# What Suffice reads or sends and has seen only in documentation, not at a live server.
FROM_DOCUMENTATION: tuple[str, ...] = (
    "the ways to close a thought and the budget fields of every driver but llama.cpp's",
)


def not_verified() -> tuple[str, ...]:
    shapes = (
        f"{engine}: " + "; ".join(s.shape for s in SHAPES if s.engine == engine and s.evidence == "synthetic")
        for engine in engines("synthetic")
    )
    return (*shapes, *FROM_DOCUMENTATION)


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


# Shapes of answers on the wire. `recorded` ones came from a live server (`python -m tests.wire.record`), `synthetic`
# ones from documentation only, and no figure is taken from those. Their bytes are in tests/wire/streams/.
Evidence = Literal["recorded", "synthetic"]


class AnswerShape(NamedTuple):
    engine: str
    name: str  # of the file, without its extension
    shape: str  # description for people

    @property
    def evidence(self) -> Evidence:
        return "recorded" if self.engine == "llama.cpp" else "synthetic"


SHAPES: tuple[AnswerShape, ...] = (
    AnswerShape("llama.cpp", "llama_cpp_chat_reasoning", "chat stream, thought in reasoning_content, usage chunk"),
    AnswerShape("llama.cpp", "llama_cpp_chat_inline_tags", "chat stream, thought between tags in the content"),
    AnswerShape("llama.cpp", "llama_cpp_chat_no_usage", "chat stream without usage"),
    AnswerShape("llama.cpp", "llama_cpp_chat_body", "chat, one body"),
    AnswerShape("llama.cpp", "llama_cpp_chat_logprobs", "chat stream with log-probabilities, cut by its cap"),
    AnswerShape("llama.cpp", "llama_cpp_chat_tools", "chat stream with tools offered"),
    AnswerShape("llama.cpp", "llama_cpp_chat_prefill", "chat stream that continues an assistant message (prefill)"),
    AnswerShape("llama.cpp", "llama_cpp_chat_budget", "chat stream whose thought a budget ended"),
    AnswerShape("llama.cpp", "llama_cpp_chat_control", "chat stream whose thought the control endpoint ended (native)"),
    AnswerShape("llama.cpp", "llama_cpp_chat_cancelled", "chat stream that the client left early"),
    AnswerShape("llama.cpp", "llama_cpp_completions_raw", "completions stream that continues a template's text (raw)"),
    AnswerShape("llama.cpp", "llama_cpp_completions_body", "completions, one body"),
    AnswerShape("llama.cpp", "llama_cpp_completion_native", "llama.cpp's own completion, stream"),
    AnswerShape("llama.cpp", "llama_cpp_responses", "responses stream"),
    AnswerShape("llama.cpp", "llama_cpp_responses_body", "responses, one body"),
    AnswerShape("llama.cpp", "llama_cpp_messages", "messages stream with a thought"),
    AnswerShape("llama.cpp", "llama_cpp_messages_body", "messages, one body"),
    AnswerShape("llama.cpp", "llama_cpp_count_tokens", "messages, token count"),
    AnswerShape("vLLM", "vllm_reasoning", "chat stream, thought in reasoning"),
    AnswerShape("vLLM", "vllm_reasoning_content", "chat stream, thought in reasoning_content"),
    AnswerShape("vLLM", "vllm_continuous_usage", "chat stream, usage in every chunk"),
    AnswerShape("SGLang", "sglang_reasoning_content", "chat stream, thought in reasoning_content, nulls beside it"),
    AnswerShape("DeepSeek API", "deepseek_reasoning_content", "chat stream, comments, usage with the finish reason"),
    AnswerShape("Ollama", "ollama_reasoning", "chat stream, thought in reasoning"),
    AnswerShape("OpenAI API", "openai_chat", "chat stream, hidden thought, usage null until the end"),
    AnswerShape("OpenAI API", "openai_responses", "responses stream"),
    AnswerShape("OpenAI API", "openai_responses_body", "responses, one body"),
    AnswerShape("OpenAI API", "openai_embeddings", "embeddings"),
    AnswerShape("Anthropic API", "anthropic_messages", "messages stream with a thought"),
    AnswerShape("Anthropic API", "anthropic_messages_body", "messages, one body"),
    AnswerShape("OpenRouter", "openrouter_reasoning", "chat stream, comments, reasoning beside reasoning_details"),
    AnswerShape("Mistral API", "mistral_thinking", "chat stream, thought in parts of the content"),
)


def engines(evidence: Evidence) -> tuple[str, ...]:
    return tuple(dict.fromkeys(s.engine for s in SHAPES if s.evidence == evidence))
