"""Which clients there are, what each is asked, and where it lives. A table; refuses to run anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.clients.peers.stage import SCENES, Scene

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PROGRAMS = "tests.clients.peers.programs"
ALL = tuple(scene.name for scene in SCENES)
BODIES = tuple(scene.name for scene in SCENES if not scene.stream)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One client library or command.

    environment   folder below build/clients and name of its requirement file
    distribution  the package whose version is shown
    program       what is run: a module of `programs`, or a file of `node/`
    scenes        what it can be asked; what it has no way to ask is left out, and the docs say so
    """

    name: str
    environment: str
    distribution: str
    program: str
    runtime: Literal["python", "node"] = "python"
    scenes: tuple[str, ...] = ALL

    def own_scenes(self) -> list[Scene]:
        """Its scenes, in the order of the table."""
        return [scene for scene in SCENES if scene.name in self.scenes]


def _without(names: tuple[str, ...], *words: str) -> tuple[str, ...]:
    return tuple(name for name in names if not any(word in name for word in words))


# instructor asks for records, which are tool calls: it has no plain answers.
RECORDS = tuple(name for name in ALL if name.startswith(("tool", "400", "401", "429", "500")))

CLIENTS: tuple[Client, ...] = (
    Client(name="openai-python", environment="openai-python", distribution="openai", program="openai_python"),
    Client(name="openai-python-events", environment="openai-python", distribution="openai", program="openai_events"),
    Client(name="openai-responses", environment="openai-python", distribution="openai", program="openai_responses"),
    Client(name="anthropic", environment="anthropic", distribution="anthropic", program="anthropic_messages"),
    Client(name="langchain", environment="langchain", distribution="langchain-openai", program="langchain"),
    Client(
        name="llama-index",
        environment="llama-index",
        distribution="llama-index-llms-openai-like",
        program="llama_index",
    ),
    Client(
        name="llm",
        environment="llm",
        distribution="llm",
        program="llm_command",
        scenes=_without(ALL, "tool"),
    ),
    Client(
        name="pydantic-ai",
        environment="pydantic-ai",
        distribution="pydantic-ai-slim",
        program="pydantic_ai_client",
    ),
    Client(
        name="instructor",
        environment="instructor",
        distribution="instructor",
        program="instructor_client",
        scenes=RECORDS,
    ),
    Client(
        name="openai-agents",
        environment="openai-agents",
        distribution="openai-agents",
        program="openai_agents",
    ),
    Client(
        name="dspy",
        environment="dspy",
        distribution="dspy",
        program="dspy_client",
        scenes=_without(BODIES, "tool"),
    ),
    Client(name="litellm", environment="litellm", distribution="litellm", program="litellm_client"),
    Client(
        name="openai-node",
        environment="node",
        distribution="openai",
        program="openai_node.mjs",
        runtime="node",
    ),
    Client(
        name="openai-node-responses",
        environment="node",
        distribution="openai",
        program="openai_responses.mjs",
        runtime="node",
    ),
    Client(
        name="anthropic-node",
        environment="node",
        distribution="@anthropic-ai/sdk",
        program="anthropic_node.mjs",
        runtime="node",
    ),
    Client(name="ai-sdk", environment="node", distribution="ai", program="ai_sdk.mjs", runtime="node"),
    Client(
        name="ai-sdk-responses",
        environment="node",
        distribution="@ai-sdk/openai",
        program="ai_sdk_responses.mjs",
        runtime="node",
    ),
    Client(
        name="ai-sdk-messages",
        environment="node",
        distribution="@ai-sdk/anthropic",
        program="ai_sdk_messages.mjs",
        runtime="node",
    ),
)
