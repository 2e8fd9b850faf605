"""An agent's turns through the gateway: one run of the kind `rounds`, ended by a reply without tools."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from suffice.control.evidence.audits import recorded_audit
from suffice.gateway.kill import set_switch
from suffice.types import Episode
from suffice.wiring.keys import kill_file
from suffice_testing import Questions, Reply, ToolCall
from suffice_testing.reply import FakeRequest
from tests.control.test_owned import counted
from tests.gateway.api_streams import read_answer
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, post, served

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
TRIALS = ("3", "4", "4", "5")  # what the model would answer after each turn; the last is the full run's answer
QUESTION = "How many rivers are there?"


@dataclass
class Lookups:
    """Looks up something for as many turns as it has answers but one, then answers; without tools it answers now."""

    answers: tuple[str, ...] = TRIALS
    ignores_choice: bool = False  # an engine that calls all the same
    n_trials: int = 0

    def __call__(self, seen: FakeRequest) -> Reply:
        n = sum(results_in(one) for one in seen.messages if isinstance(one, dict))
        is_forced = seen.body.get("tool_choice") in ("none", {"type": "none"})
        self.n_trials += is_forced
        if is_forced and not self.ignores_choice:
            return Reply(answer=(f"It is {self.answers[n - 1]}",))
        if n >= len(self.answers) - 1:
            return Reply(reasoning=("well ", "now "), answer=(f"It is {self.answers[-1]}",))
        call = ToolCall(id=f"call_{n}", name="get_river", arguments=(json.dumps({"n": n}),))
        return Reply(reasoning=("let ", "me ", "look "), answer=(), tool_calls=(call,))


def results_in(message: Mapping[str, Any]) -> int:
    parts = message.get("content")
    listed = parts if isinstance(parts, list) else ()
    in_parts = sum(isinstance(one, dict) and one.get("type") == "tool_result" for one in listed)
    return sum((message.get("role") == "tool", message.get("type") == "function_call_output", in_parts))


def routes(*, agent: Mapping[str, Any] = {}, **turns: Any) -> dict[str, Any]:
    own = {
        "kind": "rounds",
        "scorer": "number",
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "policy": {"policy": "stable-answer", "streak": 2},
        "probe": {},
        "reading_tools": ["get_*"],
    }
    return {"agent": {"upstream": "up", "turns": "loop", **agent}, "loop": own | turns}


@dataclass
class Agent:
    """A client's loop on one of the APIs."""

    g: Served
    path: str = CHAT
    stream: bool = False
    conversation: str | None = "c-1"
    tool: str = "get_river"
    fields: Mapping[str, Any] = field(default_factory=dict)
    history: list[Any] = field(default_factory=lambda: [{"role": "user", "content": QUESTION}])
    answers: list[Answer] = field(default_factory=list)

    async def turn(self) -> tuple[str, list[tuple[str, str, Any]]]:
        """Send the next request; return its text and its calls as (id, name, arguments)."""
        headers = {} if self.conversation is None else {"x-conversation-id": self.conversation}
        answer = await post(self.g.session, self.g.url + self.path, self.body(), headers)
        assert answer.status == 200, answer.raw
        self.answers.append(answer)
        if self.path == CHAT:
            calls = calls_of(answer)
            return answer.text, calls
        output = read_answer(self.path, answer.raw, stream=self.stream)
        return output.text, [(f"call_{len(self.answers) - 1}", name, given) for name, given in output.calls]

    async def run(self, most: int = 9) -> str:
        for _ in range(most):
            text, calls = await self.turn()
            if not calls:
                return text
            self.note(calls)
        raise AssertionError("it never answered")

    def body(self) -> dict[str, Any]:
        schema = {"type": "object"}
        if self.path == CHAT:
            tool: Any = {"type": "function", "function": {"name": self.tool, "parameters": schema}}
            more: dict[str, Any] = {"messages": self.history}
        elif self.path == MESSAGES:
            tool, more = {"name": self.tool, "input_schema": schema}, {"messages": self.history, "max_tokens": 500}
        else:
            tool, more = {"type": "function", "name": self.tool, "parameters": schema}, {"input": self.history}
        return {"model": "m", "tools": [tool], "stream": self.stream, **more, **self.fields}

    def note(self, calls: list[tuple[str, str, Any]]) -> None:
        for call_id, name, given in calls:
            written, result = json.dumps(given), f"river {call_id}"
            if self.path == CHAT:
                call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": written}}
                self.history += [
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": call_id, "content": result},
                ]
            elif self.path == MESSAGES:
                used = {"type": "tool_use", "id": call_id, "name": name, "input": given}
                done = {"type": "tool_result", "tool_use_id": call_id, "content": result}
                self.history += [{"role": "assistant", "content": [used]}, {"role": "user", "content": [done]}]
            else:
                self.history += [
                    {"type": "function_call", "call_id": call_id, "name": name, "arguments": written},
                    {"type": "function_call_output", "call_id": call_id, "output": result},
                ]


def calls_of(answer: Answer) -> list[tuple[str, str, Any]]:
    if "event-stream" not in answer.headers["content-type"]:
        listed = answer.json["choices"][0]["message"].get("tool_calls") or []
    else:
        deltas = [choice["delta"] for chunk in answer.chunks for choice in chunk["choices"]]
        parts = [part for delta in deltas for part in delta.get("tool_calls") or ()]
        written = "".join(part["function"].get("arguments") or "" for part in parts)
        listed = (
            [parts[0] | {"function": {"name": parts[0]["function"]["name"], "arguments": written}}] if parts else []
        )
    return [(c["id"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in listed]


async def loop_and_turns(g: Served, n: int) -> tuple[Episode, list[Episode]]:
    """The run of the turns, and the requests in their order, `n` of them."""
    await g.quiet()
    episodes = [one.episode for one in await g.episodes(n + 1)]
    (run,) = (one for one in episodes if one.request.route == "loop")
    return run, [one for one in episodes if one.request.route == "agent"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
async def test_a_loop_ends_once_its_turns_suffice_with_the_answer_that_was_tried(
    serve: Serve, path: str, stream: bool
) -> None:
    async with serve(model := Lookups((*TRIALS, "6")), routes=routes()) as g:
        agent = Agent(g, path=path, stream=stream)
        assert await agent.run() == "It is 4"
        run, turns = await loop_and_turns(g, 4)
        outcome = run.outcome
        assert (outcome.stopped, outcome.stop_step, outcome.end_reason) == (True, 3, "stopped")
        assert (outcome.answer, outcome.would_answer, outcome.degraded) == ("4", "4", ())
        assert [(step.answer, step.caller_action, step.missing) for step in outcome.steps] == [
            (answer, "get_river", False) for answer in ("3", "4", "4")
        ]
        assert model.n_trials == 3
        # The reply is the third trial itself: no further call was made for it.
        assert [one.request.ungoverned for one in turns] == [None, None, None, "turns"]
        assert len(g.fake.completions) == 6
        # Two trials are beside the four replies that the client got; the third is both.
        generated = sum(one.outcome.usage.completion_tokens for one in turns if one.outcome.usage)
        trials = [step.probe_tokens for step in outcome.steps]
        assert g.fake.total_completion_tokens == generated + trials[0] + trials[1]
        assert outcome.usage is not None
        assert outcome.usage.completion_tokens == sum(step.tokens for step in outcome.steps)
        assert outcome.overhead.probe_tokens == sum(trials)
        assert outcome.overhead.extra_prompt_tokens > 0


async def test_the_reply_that_ends_a_run_names_the_run(serve: Serve) -> None:
    async with serve(Lookups(), routes=routes()) as g:
        agent = Agent(g)
        await agent.run()
        run, _ = await loop_and_turns(g, 4)
        report = agent.answers[-1].report["turns"]
        assert report["episode_id"] == run.request.episode_id
        assert (report["route"], report["turn"], report["stopped"]) == ("loop", 4, True)
        assert agent.answers[-1].report["stopped"] is False  # its thought was not cut
        assert all(one.report is None for one in agent.answers[:-1])


async def test_an_audit_says_of_a_stop_what_a_live_client_gets(tmp_path: Path) -> None:
    draw = random.Random(7)
    scripts = [tuple(draw.choice("34") for _ in range(draw.randrange(2, 8))) for _ in range(12)]
    seen: dict[float, list[tuple[int | None, str | None]]] = {}
    for share in (0.0, 1.0):
        (tmp_path / str(share)).mkdir()
        script, n_requests = {f"{QUESTION} ({n:02})": Lookups(answers) for n, answers in enumerate(scripts)}, 0
        says = Questions(script, Lookups())
        async with served(tmp_path / str(share), says, routes=routes(audit_share=share)) as g:
            for n, question in enumerate(script):
                agent = Agent(g, conversation=f"c-{n}", history=[{"role": "user", "content": question}])
                await agent.run()
                n_requests += len(agent.answers)
            episodes = await g.episodes(len(scripts) + n_requests)
            items = [one for one in episodes if one.episode.request.route == "loop"]
            runs = [one.episode for one in items]
        assert all(run.request.audit == bool(share) for run in runs)
        if share:  # a stop after the last step is none
            stops = [(one.outcome.stop_step, one.outcome.would_answer, len(one.outcome.steps)) for one in runs]
            seen[share] = [(step, answer) if step != n_steps else (None, None) for step, answer, n_steps in stops]
        else:
            live = [one.outcome for one in runs]
            seen[share] = [(one.stop_step, one.answer) if one.stopped else (None, None) for one in live]
    assert len(seen[0.0]) == len(scripts)
    assert seen[0.0] == seen[1.0]
    # The evidence counts what a live client got against what the full run answers.
    audits = [recorded_audit(item, at) for at, item in enumerate(items)]
    z, differs, _ = zip(*counted(audits, routes()["loop"]["policy"], kind="rounds"), strict=True)
    lost = [answer is not None and answer != script[-1] for (_, answer), script in zip(seen[0.0], scripts, strict=True)]
    assert (list(z), list(differs)) == ([int(one) for one in lost], lost)
    assert 1 < sum(lost) < len(scripts) - 1
    assert 3 < sum(step is not None for step, _ in seen[0.0]) < len(scripts)


@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_audits_run_in_full_and_try_an_answer_after_every_turn(serve: Serve, mode: str) -> None:
    async with serve(Lookups(), routes=routes(mode=mode, uncertified=mode == "enforce", audit_share=1.0)) as g:
        agent = Agent(g, stream=True)
        assert await agent.run() == "It is 5"
        run, turns = await loop_and_turns(g, 4)
        assert run.request.audit
        assert (run.outcome.stopped, run.outcome.end_reason, run.outcome.answer) == (False, "done", "5")
        assert [step.answer for step in run.outcome.steps] == ["3", "4", "4", "5"]
        assert (run.outcome.stop_step, run.outcome.would_answer) == (3, "4")  # the paired truth of a stop there
        assert [one.request.ungoverned for one in turns] == [None] * 4
        # The client reads what the model server sends.
        for n, answer in enumerate(agent.answers):
            body = agent.body() | {"messages": agent.history[: 1 + 2 * n]}
            assert calls_of(answer) == calls_of(direct := await g.direct(body))
            assert (answer.text, answer.thought, answer.finish) == (direct.text, direct.thought, direct.finish)


async def test_observing_without_a_probe_adds_no_call(serve: Serve) -> None:
    async with serve(Lookups(), routes=routes(mode="observe", uncertified=False, probe=None)) as g:
        assert await Agent(g).run() == "It is 5"
        run, _ = await loop_and_turns(g, 4)
        assert len(g.fake.completions) == 4
        assert [step.answer for step in run.outcome.steps] == [None, None, None, "5"]


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ({"conversation": None}, "conversation"),
        ({"tool": "send_mail"}, "tools"),
        ({"fields": {"tools": []}}, "tools"),
    ],
)
async def test_turns_that_cannot_be_governed_are_left_alone(serve: Serve, agent: Any, reason: str) -> None:
    async with serve(Lookups(), routes=routes()) as g:
        assert await Agent(g, **agent).run() == "It is 5"
        await g.quiet()
        await g.episodes(4)
        assert len(g.fake.completions) == 4
        assert g.gateway.metrics.value("suffice_ungoverned_total", route="loop", reason=reason) == 4


@pytest.mark.parametrize("fields", [{"tool_choice": "required"}, {}], ids=["a call is required", "the engine calls"])
async def test_a_turn_without_a_trial_answer_never_ends_a_run(serve: Serve, fields: Any) -> None:
    model = Lookups(ignores_choice=not fields)
    async with serve(model, routes=routes(policy={"policy": "fixed-rounds", "max_steps": 1})) as g:
        assert await Agent(g, fields=fields).run() == "It is 5"
        run, _ = await loop_and_turns(g, 4)
        assert [step.missing for step in run.outcome.steps][:2] == [True, True]
        # Only where no further call follows does the engine answer.
        assert run.outcome.stop_step == (4 if fields else 3)


async def test_a_history_that_is_not_the_runs_own_gives_the_run_up(serve: Serve) -> None:
    async with serve(Lookups(), routes=routes()) as g:
        agent = Agent(g)
        for _ in range(2):
            agent.note((await agent.turn())[1])
        agent.history[1]["tool_calls"][0]["id"] = agent.history[2]["tool_call_id"] = "another"
        assert await agent.run() == "It is 5"
        run, turns = await loop_and_turns(g, 4)
        assert run.outcome.end_reason == "client_left"
        assert [one.request.ungoverned for one in turns] == [None] * 4
        assert g.gateway.metrics.value("suffice_ungoverned_total", route="loop", reason="unknown_run") == 2


async def test_a_turn_that_is_asked_for_again_is_one_step(serve: Serve) -> None:
    async with serve(model := Lookups(), routes=routes()) as g:
        agent = Agent(g)
        await agent.turn()  # its reply is lost on the way
        for _ in range(2):
            agent.note((await agent.turn())[1])
        await agent.turn()
        assert await agent.run() == "It is 4"
        run, turns = await loop_and_turns(g, 6)
        assert [step.answer for step in run.outcome.steps] == ["3", "4", "4"]
        assert model.n_trials == 3
        spent = [one.outcome.usage.completion_tokens for one in turns if one.outcome.usage]
        assert run.outcome.usage is not None
        assert run.outcome.usage.completion_tokens == sum(spent[:-1])  # what was generated twice was paid twice


async def test_the_kill_switch_ends_no_run_and_tries_no_answer(serve: Serve) -> None:
    async with serve(model := Lookups(), routes=routes()) as g:
        agent = Agent(g)
        agent.note((await agent.turn())[1])
        set_switch(kill_file(g.gateway.settings), "too many wrong answers", "ann")
        g.gateway.deployment.check_kill()
        assert await agent.run() == "It is 5"
        assert model.n_trials == 0
        run, _ = await loop_and_turns(g, 4)
        assert (run.outcome.stopped, run.outcome.end_reason) == (False, "client_left")  # its turns pass through


async def test_a_new_question_in_the_conversation_is_a_run_of_its_own(serve: Serve) -> None:
    async with serve(Lookups(), routes=routes()) as g:
        agent = Agent(g)
        await agent.run()
        agent.history += [{"role": "assistant", "content": "It is 4"}, {"role": "user", "content": "And lakes?"}]
        n_before = len(agent.answers)
        (_, calls) = await agent.turn()
        await g.quiet()
        assert not calls  # the script counts the results of the whole conversation
        runs = [one.episode for one in await g.episodes(n_before + 3) if one.episode.request.route == "loop"]
        assert len({one.request.unit for one in runs}) == 2  # a draw of its own
        assert len({one.request.conversation for one in runs}) == 1


async def loops(g: Served) -> list[dict[str, Any]]:
    """The running loops that a person may see."""
    async with g.session.get(f"{g.url}/v1/runs") as response:
        return [one for one in (await response.json())["runs"] if one["route"] == "loop"]


async def ask_loop(g: Served, what: str) -> Answer:
    (one,) = await loops(g)
    return await post(g.session, f"{g.url}/v1/runs/{one['id']}/{what}", b"", {})


async def begun(g: Served) -> Agent:
    """An agent whose first turn's tools have answered."""
    agent = Agent(g)
    agent.note((await agent.turn())[1])
    return agent


@pytest.mark.parametrize("settings", [{"mode": "observe"}, {}, {"audit_share": 1.0}], ids=["observe", "live", "audit"])
async def test_a_person_may_ask_an_agent_for_its_answer(serve: Serve, settings: Any) -> None:
    async with serve(Lookups((*TRIALS, "6")), routes=routes(policy={"policy": "never"}, **settings)) as g:
        agent = await begun(g)
        assert [one["state"] for one in await loops(g)] == ["looping"]
        report = await ask_loop(g, "answer-now")
        assert (report.status, report.json["wish"]) == (202, "answer_now")
        assert await agent.run() == "It is 3"
        assert await loops(g) == []
        run, turns = await loop_and_turns(g, 2)
        assert (run.outcome.end_reason, run.outcome.stopped, run.outcome.answer) == ("asked", False, "3")
        assert [one.request.ungoverned for one in turns] == [None, "turns"]


async def test_an_agent_that_was_asked_to_think_on_is_not_stopped_and_tries_no_answer(serve: Serve) -> None:
    async with serve(model := Lookups((*TRIALS, "6")), routes=routes()) as g:
        agent = await begun(g)
        assert (await ask_loop(g, "think-more")).status == 202
        assert await agent.run() == "It is 6"
        assert model.n_trials == 0
        run, _ = await loop_and_turns(g, 5)
        assert (run.outcome.end_reason, run.outcome.stopped) == ("asked", False)


async def test_an_agent_that_was_asked_and_cannot_answer_goes_on(serve: Serve) -> None:
    async with serve(Lookups(ignores_choice=True), routes=routes()) as g:
        agent = await begun(g)
        assert (await ask_loop(g, "answer-now")).status == 202
        assert await agent.run() == "It is 5"
        run, _ = await loop_and_turns(g, 4)
        assert (run.outcome.end_reason, run.outcome.answer) == ("asked", "5")


async def test_an_agent_whose_route_tries_no_answers_cannot_be_asked(serve: Serve) -> None:
    async with serve(Lookups(), routes=routes(probe=None, mode="observe")) as g:
        agent = await begun(g)
        assert (await ask_loop(g, "answer-now")).status == 409
        assert await agent.run() == "It is 5"
