"""What `suffice doctor` found at a model server, read: what may be added to a request there, and what not.

Pure: it knows the names of the experiments and refuses to know how they are made (`doctor`).
Without findings nothing is known, and what is not known is not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from suffice.types import Finding, Findings, Verdict

# experiment: what its "yes" means, in the order in which they are made and shown
EXPERIMENTS: Mapping[str, str] = {
    "reachable": "answers a chat request",
    "models": "lists its models",
    "slots": "says how many requests it serves at once",
    "context": "says how long a context may be",
    "unknown_fields": "accepts a field that it does not know",
    "max_tokens": "`max_tokens` caps the answer",
    "max_completion_tokens": "`max_completion_tokens` caps the answer",
    "stream_usage": "a stream ends with its usage when `stream_options.include_usage` asks for it",
    "reasoning": "shows the thought, in a field of its own or between tags",
    "logprobs": "gives the log-probability of every answer token",
    "logprobs_stream": "the same in a stream",
    "tool_stream": "streams a tool call piece by piece",
    "n": "`n = 2` gives two answers",
    "seed": "the same seed gives the same text, another seed another",
    "prefill": "continues an assistant's last message",
    "raw": "`/v1/completions` continues the text of the chat template",
    "native_end": "ends a running thought when told to",
    "native_budget": "ends a thought after a number of tokens",
    "prefix_cache": "does not read the beginning of a prompt again that it has read",
    "cache_prompt": "`cache_prompt = false` turns the prefix cache off, so the field is honoured",
    "id_slot": "`id_slot` chooses the slot",
    "cancel": "stops generating when the client hangs up",
    "rate_limits": "tells its rate limits in headers",
}
CONTINUES = ("prefill", "raw")


def url_key(url: str) -> str:
    """A short hash of a server's address, the same with and without /v1. It reveals no credentials."""
    base = url.rstrip("/").removesuffix("/v1").rstrip("/")
    return hashlib.blake2b(base.encode(), digest_size=8).hexdigest()


def finding(findings: Findings | None, experiment: str) -> Finding | None:
    """What was found in an experiment; None: it was not made."""
    if findings is None:
        return None
    return next((one for one in findings.findings if one.experiment == experiment), None)


def find_verdict(findings: Findings | None, experiment: str) -> Verdict | None:
    """The verdict of an experiment; None: it was not made."""
    found = finding(findings, experiment)
    return None if found is None else found.verdict


def honoured(findings: Findings | None, experiment: str) -> bool:
    """Was it seen to work? False where nothing is known."""
    return find_verdict(findings, experiment) == "yes"


def allows_probes(findings: Findings | None) -> bool:
    """Was the server seen to continue a text, and not to read its beginning again each time?

    Without both, a probe either says nothing about a stop or costs as much as the whole prompt.
    """
    return any(honoured(findings, way) for way in CONTINUES) and honoured(findings, "prefix_cache")
