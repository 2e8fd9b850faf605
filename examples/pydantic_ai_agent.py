"""Self-revision with pydantic-ai: an agent answers, and is asked to check its work until the answer stands.

`pip install pydantic-ai-slim[openai]`, then `python examples/pydantic_ai_agent.py`.

The conversation is the agent's own; Suffice is told after each of its runs, and awaited.
"""

from __future__ import annotations

import openai
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from compare import arguments, compare_async
from local_model import NAME, local_model
from self_revision import POLICY, REVISE, ROUNDS, SHOWN, Sum, questions
from suffice import AsyncEpisode

FIRST: list[ModelMessage] = [
    ModelRequest(parts=[UserPromptPart(content=SHOWN[0]["content"])]),
    ModelResponse(parts=[TextPart(content=SHOWN[1]["content"])]),
]


async def loop(url: str, question: Sum, ep: AsyncEpisode) -> None:
    """The loop that is governed."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", timeout=300) as client:
        model = OpenAIChatModel(NAME, provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, model_settings=ModelSettings(temperature=0.0, max_tokens=48))
        prompt, history = question.text, FIRST
        for attempt in range(ROUNDS):
            result = await agent.run(prompt, message_history=history)
            usage = result.usage
            decision = await ep.step(
                text=result.output,
                tokens=usage.output_tokens,
                ctx_tokens=usage.input_tokens,
                action="revise" if attempt else "solve",
            )
            if decision.stop:
                break
            asked = ModelRequest(parts=[UserPromptPart(content=question.text)])
            prompt, history = REVISE, [*FIRST, asked, ModelResponse(parts=[TextPart(content=result.output)])]


def main() -> None:
    """Run it in full and governed."""
    asked = arguments(__doc__, questions=8)
    with local_model() as model:
        compare_async(
            questions(asked.questions),
            lambda question, ep: loop(model.url, question, ep),
            title="self-revision with pydantic-ai",
            scorer="number",
            policy=POLICY,
            verbose=asked.verbose,
        )


if __name__ == "__main__":
    main()
