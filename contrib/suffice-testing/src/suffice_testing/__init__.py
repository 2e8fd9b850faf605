"""Fakes for your own tests: a model server that replies as configured and counts its requests.

>>> import json, urllib.request
>>> from suffice_testing import FakeUpstream, ScriptedThought
>>> thought = ScriptedThought([("two and two ", "3"), ("make four", "4")], final_answer="4")
>>> with FakeUpstream.in_thread(thought) as fake:
...     body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}]})
...     with urllib.request.urlopen(fake.url + "/v1/chat/completions", body.encode()) as reply:
...         message = json.load(reply)["choices"][0]["message"]
>>> message["reasoning_content"], message["content"]
('two and two make four', '4')
>>> fake.total_completion_tokens
7
"""

from __future__ import annotations

from suffice_testing.chain import Answerer, At, Questions, Samples, ScriptedThought
from suffice_testing.dialects import ServerBehaviour
from suffice_testing.prompt import cut
from suffice_testing.reply import (
    AnswerTokens,
    FakeCall,
    FakeRequest,
    Fault,
    Reply,
    Script,
    ToolCall,
)
from suffice_testing.upstream import FakeUpstream

__all__ = [
    "AnswerTokens",
    "Answerer",
    "At",
    "FakeCall",
    "FakeRequest",
    "FakeUpstream",
    "Fault",
    "Questions",
    "Reply",
    "Samples",
    "Script",
    "ScriptedThought",
    "ServerBehaviour",
    "ToolCall",
    "cut",
]
