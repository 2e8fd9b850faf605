"""A route in budgeted mode publishes its account, is called certified nowhere above its floor, and replays the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.errors import ConfigError
from suffice.review.route_guarantee import GuaranteeInputs, covers, guarantee_of
from suffice.settings import Settings, parse_settings
from suffice.store.routes.deployments import phase_of
from suffice.types import BudgetAccount, Epoch
from suffice.wiring.routes import build_route, check_routes
from tests.control.made import ROUTE, Story, began, rows, story, traffic
from tests.control.test_live_decisions import certified, write
from tests.control.test_story import CONTROL as LIVE_CONTROL
from tests.control.test_story import ROUTE as LIVE_ROUTE
from tests.control.test_story import Model, N, until
from tests.gateway.served import Served, chat, served

PLAIN = msgspec.structs.replace(ROUTE, max_em_drop=0.06, confidence=0.95)
BUDGETED = msgspec.structs.replace(PLAIN, promise="budgeted")
LOG = traffic(250, p_right=0.75)


def lived(**options: Any) -> Story:
    return story(BUDGETED, held=began(BUDGETED, promise="budgeted"), **options)


@pytest.fixture(scope="module")
def whole() -> Story:
    """A cold start and what follows, read in one go."""
    return lived().feed(rows(LOG)).settle()


def test_it_goes_above_what_is_certified_and_says_so(whole: Story) -> None:
    first, last = whole.published[0], whole.published[-1]
    assert first.spending is not None
    assert first.level == first.spending.floor
    assert first.certified, "it begins at the certified level"
    assert last.spending is not None
    assert last.level > last.spending.floor
    assert not last.certified
    assert last.may_act
    assert last.level <= last.spending.affordable
    assert last.spending.n_audits > 0, "it pays from audits that ran under the level before"
    certified = story(PLAIN, held=began(PLAIN)).feed(rows(LOG)).settle().published
    assert all(one.spending is None and one.certified for one in certified if one.level)
    assert last.level > certified[-1].level


@pytest.mark.parametrize("cut", [250, 410])
def test_a_worker_that_was_killed_is_followed_by_one_that_decides_the_same(whole: Story, cut: int) -> None:
    log = rows(LOG)
    before = lived().feed(log[:cut])
    after = lived(expected=before.published, artefacts=before.artefacts).feed(log).settle()
    assert before.published + after.published == whole.published


def test_another_promise_keeps_the_audits_and_counts_anew(whole: Story) -> None:
    here = story(PLAIN, held=began(PLAIN)).feed(rows(LOG[:100])).settle()
    here.loop.state.context = replace(here.loop.context, route=BUDGETED)
    here.settle()
    epoch = [event for event in here.decided if isinstance(event, Epoch)][-1]
    assert (epoch.promise, epoch.burst, epoch.reason) == ("budgeted", 0, "the promise is 0.06 on average now")
    assert len(epoch.kept) == 50


def test_a_gateway_whose_owner_wants_a_certificate_does_not_act_on_it(whole: Story) -> None:
    made = replace(whole.published[-1], setup=build_route("r", BUDGETED).setup)
    served, other = build_route("r", BUDGETED), build_route("r", PLAIN)
    assert covers(served.settings, served.settings.max_em_drop, served.setup, made)
    assert not covers(other.settings, other.settings.max_em_drop, other.setup, made)


def test_people_read_what_is_kept_and_what_is_not_promised(whole: Story) -> None:
    phase = phase_of(whole.loop.held)
    assert phase.phase == "budgeted"
    held = whole.loop.held
    guarantee = guarantee_of(
        GuaranteeInputs(
            name="r",
            settings=msgspec.structs.replace(BUDGETED, mode="enforce"),
            epoch=held.epoch,
            publication=held.publication,
        )
    ).sentence
    assert "budgeted: the mean EM drop of all audits of this epoch is steered to 6 points" in guarantee
    assert "No confidence belongs to it" in guarantee
    assert "loses less than" not in guarantee


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"policy": {"policy": "never"}}, "policy"),
        ({"kind": "reasoning", "effort": "low"}, "effort=low"),
        ({"kind": "reasoning", "budget_tokens": 9}, "budget_tokens=9"),
    ],
)
def test_where_no_level_is_learned_there_is_nothing_to_steer(more: dict[str, Any], what: str) -> None:
    route = {"upstream": "up", "kind": "samples", "samples": 8, "promise": "budgeted", **more}
    with pytest.raises(ConfigError, match=f"routes.r.promise: got 'budgeted'.* beside {what}; allowed: 'certified'"):
        parse_settings({"upstreams": {"up": {"url": "http://127.0.0.1:1"}}, "routes": {"r": route}})


def settings_of(g: Served) -> Settings:
    return parse_settings(
        {
            "upstreams": {"up": {"url": g.fake.url, "driver": "llama.cpp"}},
            "routes": {"r": {"upstream": "up", **LIVE_ROUTE, "promise": "budgeted"}},
            "store": {"url": f"sqlite:///{g.database}"},
            "control": LIVE_CONTROL,
        }
    )


async def test_replies_metrics_status_and_checks_call_it_budgeted_and_not_certified(tmp_path: Path) -> None:
    async with served(tmp_path, Model(), route=LIVE_ROUTE | {"promise": "budgeted"}) as g:
        settings = settings_of(g)
        made = await certified(g, settings)
        account = BudgetAccount(
            floor=made.level - 1,
            affordable=made.level,
            n_audits=900,
            n_waiting=3,
            em_drop=0.1,
            max_em_drop=0.12,
            clipped=2.5,
        )
        write(g, replace(made, number=made.number + 1, certified=False, spending=account))
        await until(lambda: g.gateway.deployment.routes[0].floor == made.level - 1)
        before = len(g.fake.completions)
        answers = [await g.ask(chat(f"question {at}?", suffice={})) for at in range(20)]
        assert len(g.fake.completions) - before < 6 * 20, "it acts"
        for answer in answers:
            assert answer.report["certified"] is False
            assert "No confidence belongs to it" in answer.report["promise"]
            assert answer.report["policy_version"] == f"{made.fit}@{made.level}"
        assert g.gateway.metrics.value("suffice_certified_level", route="r") == made.level - 1
        request = (await g.episodes(N + 20))[-1].episode.request
        assert (request.certified, request.promise) == (False, "budgeted")
        config = tmp_path / "suffice.toml"
        lines = [f"{key} = {value!r}".replace("'", '"') for key, value in LIVE_ROUTE.items()]
        config.write_text(
            f'[upstreams.up]\nurl = "{g.fake.url}"\n[routes.r]\nupstream = "up"\npromise = "budgeted"\n'
            + "\n".join(lines)
            + f'\n[store]\nurl = "sqlite:///{g.database}"\n',
            "utf-8",
        )
    status_text = CliRunner().invoke(main, ["status", "--all", "--config", str(config)]).output
    assert (
        f"budgeted, level {made.level} of {made.n_levels - 1}: the drop is kept on average, with no confid"
        in status_text
    )
    assert "a mean drop of 10.00 of 12.00 points over 900 audits" in status_text
    assert "3 of them with a guess" in status_text
    assert answers[-1].report["promise"] in status_text, "the same sentence"
    settings_text = CliRunner().invoke(main, ["config", "show", str(config)]).output
    assert '"promise": "budgeted"' in settings_text
    assert any("it has no confidence" in one for one in check_routes(settings))
