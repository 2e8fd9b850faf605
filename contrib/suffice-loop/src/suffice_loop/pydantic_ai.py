"""A capability for agents of Pydantic AI: at a stop, the next request is answered without the model.

>>> with AgentRun(governor, question) as run:
...     result = await agent.run(question, capabilities=[Suffice(run)])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_ai import RunContext, SkipModelRequest
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models import ModelRequestContext

from suffice_loop.run import AgentRun


@dataclass
class Suffice(AbstractCapability[Any]):
    """Governs one run whose output is text."""

    run: AgentRun

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        if self.run.stops:
            raise SkipModelRequest(ModelResponse(parts=[TextPart(self.run.answer)]))
        return request_context

    async def after_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        await self.run.take_async(
            "".join(part.content for part in response.parts if isinstance(part, TextPart)),
            tokens=response.usage.output_tokens,
            ctx_tokens=response.usage.input_tokens,
            calls_tool=any(isinstance(part, ToolCallPart) for part in response.parts),
        )
        return response
