"""Self-revision: a model solves a sum in steps, then looks at its own work again, until the answer stands.

    python examples/self_revision.py

Revising costs as much as solving each time, and mostly repeats what stood there before.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice

from compare import arguments, compare
from local_model import Model, local_model
from suffice import Episode
from suffice_demo.local.questions import chains

ROUNDS = 3
POLICY = {"policy": "stable-answer", "streak": 2}  # a revision that changed nothing
SHOWN = [
    {"role": "user", "content": "Calculate 20 + 5 - 3 + 10."},
    {"role": "assistant", "content": "20 + 5 = 25\n25 - 3 = 22\n22 + 10 = 32"},
]
REVISE = "Check each line. Write all lines again, corrected where needed."


@dataclass(frozen=True, slots=True)
class Sum:
    """One sum and its only right answer."""

    text: str
    gold: str


def questions(n: int, seed: int = 5) -> list[Sum]:
    """Sums of three or four numbers."""
    return [Sum(item.ask, item.gold) for item in islice(chains(random.Random(seed)), n)]


def loop(model: Model, question: Sum, ep: Episode) -> None:
    """The loop that is governed. The route's scorer reads the answer from the text."""
    asked = [*SHOWN, {"role": "user", "content": question.text}]
    messages = asked
    for attempt in range(ROUNDS):
        said = model.ask(messages, max_tokens=48)
        action = "revise" if attempt else "solve"
        if ep.step(text=said.text, tokens=said.tokens, ctx_tokens=said.ctx_tokens, action=action).stop:
            break
        messages = [*asked, {"role": "assistant", "content": said.text}, {"role": "user", "content": REVISE}]


def main() -> None:
    """Run it in full and governed."""
    asked = arguments(__doc__, questions=16)
    with local_model() as model:
        compare(
            questions(asked.questions),
            lambda question, ep: loop(model, question, ep),
            title="self-revision",
            scorer="number",
            policy=POLICY,
            verbose=asked.verbose,
        )


if __name__ == "__main__":
    main()
