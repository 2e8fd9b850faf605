"""A request of the kind `samples`: several answers are drawn, and the winner of their vote is delivered."""

from __future__ import annotations

from typing import Any

from suffice.assurance.money import full_vote_tokens
from suffice.episode.ledger import suffice_object, usage_json
from suffice.episode.loop import GuardedPolicy, run_episode
from suffice.episode.samples import SampleRun, as_chunks
from suffice.gateway.exchange import SSE_HEADERS
from suffice.gateway.lifecycle import GovernedRequest
from suffice.types import Decision, Signals, Step
from suffice.upstream.drivers import has_field, honoured
from suffice.upstream.wire import DONE, encode_json


async def govern_samples(job: GovernedRequest) -> None:
    """Draw samples until the vote is decided or the policy stops, and deliver the winner as one completion."""
    ledger, n = job.ledger, job.ledger.request.n_samples
    if job.parsed.body.get("temperature") == 0:
        n = 1
        ledger.disclosure.warnings.append("temperature is 0: every sample would be the same, one was drawn")
    reads_first = job.route.reads("wording")
    asks = reads_first and honoured(job.client.findings, "logprobs_stream")
    run = SampleRun(
        client=job.client,
        body=job.upstream_body | ({"logprobs": True} if asks else {}),
        headers=job.headers,
        ledger=ledger,
        scorer=job.route.scorer,
        n_samples=n,
        wave=job.route.settings.wave,
        first_alone=reads_first,
        max_bytes=job.gw.settings.server.max_sample_bytes,
        continues_after_failure=not job.may_act,
    )
    policy = GuardedPolicy(job.route.policy, job.route.needs, ledger, job.gw.monotonic_s)

    def record(step: Step, signals: Signals, decision: Decision) -> bool:
        ledger.record_step(step, signals, decision)
        return job.may_act and not run.is_decided()

    async with job.keep_alive():
        stop = await run_episode(run.steps(), policy.observe, policy, record)
        body = run.result()
        if stop is not None:
            ledger.stop.acted, ledger.stop.finish_method = True, "vote"
            drawn = [s.tokens for s in run.seen]
            ledger.costs.full_tokens = full_vote_tokens(drawn, n)
            ledger.costs.tokens_saved = round(ledger.costs.full_tokens - sum(drawn))
            ledger.costs.estimate_method = "mean tokens of the samples drawn, times the samples not drawn"
        await _deliver_vote(job, body)


async def _deliver_vote(job: GovernedRequest, body: dict[str, Any]) -> None:
    ledger, exchange = job.ledger, job.exchange
    usage = ledger.usage()
    body.pop("timings", None)  # of one sample
    if not has_field(job.parsed.body, "logprobs"):
        body["choices"][0].pop("logprobs", None)  # requested for us
    if usage is not None:
        body["usage"] = usage_json(usage)
    if ledger.stop.acted or job.parsed.has_options or ledger.disclosure.warnings:
        body["suffice"] = suffice_object(ledger)
    if not job.parsed.stream:
        await exchange.json(200, encode_json(body))
        return
    if not exchange.status:
        await exchange.start(200, SSE_HEADERS, events=True)
    for frame in as_chunks(body, wants_usage=job.parsed.wants_usage):
        await exchange.body(frame)
    await exchange.body(DONE, more=False)
