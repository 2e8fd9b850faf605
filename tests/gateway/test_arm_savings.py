"""A run with less effort, or a smaller budget, has an estimate of what it saved, in the log."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.assurance.money import MIN_RUNS
from suffice.assurance.saving import saved_tokens
from suffice.types import Usage
from tests.gateway.conftest import Serve
from tests.gateway.served import chat
from tests.gateway.test_arms import ROUTE, VLLM, Model, arm
from tests.gateway.test_log_follower import began, decide
from tests.gateway.test_several_efforts import ROUTE as EFFORTS
from tests.gateway.test_several_efforts import proved


@pytest.mark.parametrize("is_effort", [True, False])
async def test_an_arm_saved_what_full_runs_take_less_what_it_took(serve: Serve, *, is_effort: bool) -> None:
    route: dict[str, Any] = EFFORTS if is_effort else ROUTE
    async with serve(Model(), route=route, **VLLM) as g:
        lengths = g.gateway.statistics["r"].full_runs
        for k in range(MIN_RUNS):
            lengths.add(Usage(prompt_tokens=9, completion_tokens=99 + 2 * (k % 2), reasoning_tokens=90))
        await decide(g, began(), proved(g.gateway.settings, 3) if is_effort else arm(g))
        report = (await g.ask(chat(suffice={}))).report
        await g.quiet()
        (episode,) = [one.episode for one in await g.episodes(1)]
        assert report["stopped"] is not is_effort, "an engine that keeps a budget stops the run"
        assert (report["tokens_saved_estimate"] is None) == is_effort, "or live runs could be told from audits"
        assert episode.outcome.has_less_effort is is_effort
        assert saved_tokens(episode.request, episode.outcome) == 100 - g.fake.total_completion_tokens
