"""What the client is told of a run: usage in OpenAI's shape, and the one object `suffice`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from suffice.episode.ledger import Ledger
from suffice.types import Usage


def usage_json(usage: Usage) -> dict[str, Any]:
    """Usage as OpenAI writes it: reasoning tokens inside the completion, cached inside the prompt."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def suffice_object(ledger: Ledger) -> dict[str, Any]:
    """The extra top-level object of a reply. It never says whether the request was an audit.

    Where only an audit is sent probes, they are left out, with the number of steps, which waits for them. So is a probe
    that is still running when the object is written. The log has them all.
    """
    tells = ledger.tells_probes
    calls = [call for call in ledger.calls if call.purpose != "probe" or (tells and not call.is_open)]
    degraded = [site for site in ledger.degraded if tells or site != "probe"]
    ledger = replace(ledger, calls=calls, degraded=degraded)
    request, overhead, cost = ledger.request, ledger.overhead(), ledger.cost()
    told = {
        "episode_id": request.episode_id,
        "feedback_token": ledger.feedback_token or None,
        "mode": request.mode,
        "stopped": ledger.stopped,
        "stop_reason": ledger.stop_reason if ledger.stopped else None,
        "certified": request.certified,
        "promise": ledger.promise() or None,
        "policy_version": request.policy_version,
        "steps": len(ledger.steps) if tells else None,
        "probe_tokens": overhead.probe_tokens,
        "extra_prompt_tokens": overhead.extra_prompt_tokens,
        "cached_prompt_tokens": overhead.cached_prompt_tokens,
        "tokens_saved_estimate": ledger.tokens_saved_estimate if ledger.stopped else None,
        "estimate_method": ledger.estimate_method if ledger.stopped else None,
        "cost_usd": _rounded(None if cost is None else cost.total_usd),
        "saved_usd_estimate": _rounded(ledger.saved_usd()),
        "degraded": list(ledger.degraded),
        "vote": dict(ledger.vote) if ledger.vote else None,
    }
    return told | {"warnings": list(ledger.warnings)} if ledger.warnings else told


def _rounded(amount_usd: float | None) -> float | None:
    """Money without the noise of binary fractions; no price is so small that this could be seen."""
    return None if amount_usd is None else round(amount_usd, 12)
