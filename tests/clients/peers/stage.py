"""The two servers that clients are compared on: one fake model server, one real `suffice serve` before it.

A model's name says everything: `fake-MODE-SCENE`. The gateway finds its route by MODE, the fake
finds its reply by SCENE, and the request is the same to the byte in both places. Refuses to know clients.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from suffice.store.database.views import read_episodes
from suffice.types import Episode
from suffice_testing import FakeRequest, FakeUpstream, Fault, Reply, ScriptedThought, ServerBehaviour, ToolCall, cut
from tests.gateway_process import GatewayProcess

Mode = Literal["off", "observe", "enforce"]
MODES: tuple[Mode, ...] = ("off", "observe", "enforce")
ANSWER = "The answer is 408 – 北🙂."
STEPS = (
    "17 * 24 is 17 * 20 and 17 * 4\n",
    "that is 340 and 68, so 408\n",
    "again: 340 plus 68 makes 408\n",
    "or 24 * 17 is 24 * 10 and 24 * 7\n",
    "that is 240 and 168, so 408\n",
    "wait, let me look once more\n",
    "400 would be 17 * 23.5, so it is more – 北🙂\n",
    "yes, it stays with 408\n",
)
TOKEN_DELAY_S = 0.012  # a stop that comes after the second step has half a second of thought left to save
CHAIN = ScriptedThought([(step, ANSWER) for step in STEPS], ANSWER, reply=Reply(delay_s=TOKEN_DELAY_S))
PLAIN = Reply(answer=cut(ANSWER))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One thing that a client asks for, and by what rule its two results are compared.

    rule  "equal": everything is the same; "heard": the upstream broke off, so what came before is the
          same and the client must be told, also where it would not have noticed directly
    """

    name: str
    stream: bool
    tool: bool = False
    thinks: bool = False  # a policy may end it
    rule: Literal["equal", "heard"] = "equal"

    @property
    def expected(self) -> tuple[Literal["answer", "tool", "status", "broken"], str]:
        """What must come out of a direct call, and the words that say so."""
        if self.name[0].isdigit():
            return "status", self.name.partition("-")[0]
        if self.tool:
            return "tool", '{"value": 408}'
        return ("answer", ANSWER) if self.thinks else ("broken", "")


SCENES: tuple[Scene, ...] = (
    Scene(name="body", stream=False, thinks=True),
    Scene(name="stream", stream=True, thinks=True),
    Scene(name="tool-body", stream=False, tool=True),
    Scene(name="tool-stream", stream=True, tool=True),
    Scene(name="400-body", stream=False),
    Scene(name="400-stream", stream=True),
    Scene(name="401-body", stream=False),
    Scene(name="401-stream", stream=True),
    Scene(name="429-body", stream=False),
    Scene(name="429-stream", stream=True),
    Scene(name="500-body", stream=False),
    Scene(name="500-stream", stream=True),
    Scene(name="told-stream", stream=True),
    Scene(name="torn-body", stream=False, rule="heard"),
    Scene(name="torn-stream", stream=True, rule="heard"),
    Scene(name="reset-stream", stream=True, rule="heard"),
    Scene(name="unfinished-stream", stream=True, rule="heard"),
)


def model_name(mode: Mode, scene: str) -> str:
    """The name under which both servers know what is meant."""
    return f"fake-{mode}-{scene}"


def _tool_reply(seen: FakeRequest) -> Reply:
    """A call of the tool that is offered; once its result is there, an answer."""
    if any(isinstance(m, Mapping) and m.get("role") == "tool" for m in seen.messages):
        return PLAIN
    tools = seen.body.get("tools") or [{}]
    name = str(tools[0].get("function", tools[0]).get("name", "keep"))
    call = ToolCall(id="call_1", name=name, arguments=('{"value"', ": 4", "08}"))
    return Reply(reasoning=cut("I keep it."), answer=(), tool_calls=(call,))


def _error(code: int) -> Reply:
    # One client cannot be told to leave retries alone: they are made quick, and the gateway passes that on.
    return Reply(faults=(Fault(status=code, status_headers={"retry-after-ms": "20"}),))


def _broken(fault: Any) -> Reply:
    return Reply(answer=cut(ANSWER), faults=(fault,))


SAYS: Mapping[str, Reply | ScriptedThought | Callable[[FakeRequest], Reply]] = {
    "body": CHAIN,
    "stream": CHAIN,
    "tool": _tool_reply,
    "400": _error(400),
    "401": _error(401),
    "429": _error(429),
    "500": _error(500),
    "told": _broken(Fault(die_after=3, die_how="error_frame")),
    "torn": _broken(Fault(die_after=3, die_how="fin")),
    "reset": _broken(Fault(die_after=3, die_how="rst")),
    "unfinished": _broken(Fault(finish=False)),
}


def says(seen: FakeRequest) -> Reply:
    """What the fake answers; a name it does not know is a mistake in this folder and fails the run."""
    result = re.fullmatch(r"fake-(?:off|observe|enforce)-([a-z0-9]+)(?:-[a-z]+)?", seen.model)
    if result is None:
        raise ValueError(f"no such model here: {seen.model!r}")
    reply = SAYS[result[1]]
    return reply(seen) if callable(reply) else reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Both servers, running."""

    fake: FakeUpstream
    gateway_url: str
    database: Path
    config: Path

    def url(self, place: Literal["direct", "gateway"]) -> str:
        """The base address for a client, with /v1."""
        return (self.fake.url if place == "direct" else self.gateway_url) + "/v1"

    def episodes(self) -> list[Episode]:
        """Everything that the gateway has written down, in the order in which it ended."""
        return [result.episode for result in read_episodes(self.database)]


def settings(fake_url: str, database: Path) -> dict[str, Any]:
    """Three routes that differ in their mode alone; the last one acts, without a certificate."""
    shared = {"upstream": "fake", "scorer": "number", "audit_share": 0.0, "steps": {"min_tokens": 4, "growth": 1.0}}
    acting = {
        "uncertified": True,
        "probe": {"max_tokens": 16},
        "policy": {"policy": "stable-answer", "streak": 2},
    }
    return {
        "server": {"retry_window_s": 0},  # else what another client asked in the same words before runs in full
        "upstreams": {"fake": {"url": fake_url, "driver": "llama.cpp", "finish": ["raw", "prefill"], "slots": 4}},
        "routes": {
            mode: shared | {"mode": mode, "match": {"model": f"fake-{mode}-*"}} | (acting if mode == "enforce" else {})
            for mode in MODES
        },
        "store": {"url": f"sqlite:///{database}", "flush_ms": 5},
    }


@contextlib.contextmanager
def staged(folder: Path, answerer: Callable[[FakeRequest], Reply] = says) -> Iterator[Stage]:
    """Start both, and end both. Raises RuntimeError when the gateway does not come up."""
    with (
        # The AI SDK refuses llama.cpp's own stream of Responses, directly too: it does not say what it describes.
        FakeUpstream.in_thread(answerer, ServerBehaviour(numbers_events=True)) as fake,
        GatewayProcess.serving(folder, settings(fake.url, folder / "log.db")) as gateway,
    ):
        yield Stage(fake=fake, gateway_url=gateway.url, database=folder / "log.db", config=folder / "suffice.toml")
