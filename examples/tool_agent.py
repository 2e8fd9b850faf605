"""An agent with a calculator: each turn it computes something or answers, until it says that it is done.

    python examples/tool_agent.py

The agent is shown to check its result before it answers, as agents do. The answer so far is the last value
that it computed or gave.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from compare import arguments, compare
from local_model import Model, local_model
from suffice import Episode
from suffice_demo.local.questions import stories

TURNS = 6
POLICY = {"policy": "stable-answer", "streak": 2}  # a turn that changed nothing
SHOWN = (
    {"role": "system", "content": "Solve the problem. Each turn, write CALC and a sum, or ANSWER and a number."},
    {"role": "user", "content": "Zoe has 4 crates with 6 melons each and eats 5 melons. How many melons are left?"},
    {"role": "assistant", "content": "CALC 4 * 6"},
    {"role": "user", "content": "24"},
    {"role": "assistant", "content": "CALC 24 - 5"},
    {"role": "user", "content": "19"},
    {"role": "assistant", "content": "CALC 4 * 6 - 5"},
    {"role": "user", "content": "19"},
    {"role": "assistant", "content": "ANSWER 19"},
)
OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


@dataclass(frozen=True, slots=True)
class Story:
    """One word problem and its only right answer."""

    text: str
    gold: str


def questions(n: int, seed: int = 5) -> list[Story]:
    """Word problems of two steps."""
    return [Story(item.ask, item.gold) for item in islice(stories(random.Random(seed)), n)]


def calculate(expression: str) -> str:
    """The tool: sums with + - * / and brackets, and nothing else; what it cannot read it says so."""
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, KeyError, RecursionError):
        return "error: write a sum such as 4 * 6 - 5"
    return f"{value:g}"


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp):
        return float(OPERATORS[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.UnaryOp):
        return float(OPERATORS[type(node.op)](_value(node.operand)))
    raise ValueError(ast.dump(node)[:80])


def loop(model: Model, question: Story, ep: Episode) -> None:
    """The loop that is governed: a turn is a step, whether the agent computed or answered in it."""
    messages = [*SHOWN, {"role": "user", "content": question.text}]
    answer = None
    for _ in range(TURNS):
        said = model.ask(messages, max_tokens=24, stop=("\n",))
        computes = said.text.startswith("CALC")
        result = calculate(said.text.removeprefix("CALC")) if computes else said.text
        number = re.search(r"-?\d+(?:\.\d+)?$", result.strip(". "))
        answer = number.group() if number else answer
        decision = ep.step(
            answer=answer,
            tokens=said.tokens,
            ctx_tokens=said.ctx_tokens,
            logprob=_mean(said.logprobs),
            action="tool" if computes else "answer",
            done=said.text.startswith("ANSWER"),
        )
        if decision.stop or said.text.startswith("ANSWER"):
            break
        messages += [{"role": "assistant", "content": said.text}, {"role": "user", "content": result}]


def _mean(logprobs: tuple[float, ...]) -> float | None:
    return sum(logprobs) / len(logprobs) if logprobs else None


def main() -> None:
    """Run it in full and governed."""
    asked = arguments(__doc__, questions=16)
    with local_model() as model:
        compare(
            questions(asked.questions),
            lambda question, ep: loop(model, question, ep),
            title="tool agent",
            scorer="number",
            policy=POLICY,
            verbose=asked.verbose,
        )


if __name__ == "__main__":
    main()
