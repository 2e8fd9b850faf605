"""The loop of iterative_rag.py as a DSPy module: its `forward` tells Suffice each hop.

`pip install dspy`, then `python examples/dspy_rag.py`.
"""

from __future__ import annotations

import os

import dspy

from bm25 import Index
from compare import arguments, compare
from corpus import Question, corpus, questions
from iterative_rag import POLICY, ROUNDS, next_query
from local_model import NAME, local_model
from suffice import Episode


class Hop(dspy.Signature):
    """Answer the question from the passages, with the name of one country only."""

    passages: list[str] = dspy.InputField()
    question: str = dspy.InputField()
    country: str = dspy.OutputField()


class IterativeRag(dspy.Module):
    """One passage more, one answer more, until the answer stands."""

    def __init__(self, index: Index) -> None:
        super().__init__()
        self.index, self.hop = index, dspy.Predict(Hop)

    def forward(self, question: str, ep: Episode) -> dspy.Prediction:
        """The loop that is governed. A hop whose answer DSPy cannot read has none."""
        passages: list[str] = []
        query = question
        for _ in range(ROUNDS):
            passages += self.index.search(query, 1, without=passages)
            try:
                country = str(self.hop(passages=passages, question=question).country)
            except dspy.utils.exceptions.AdapterParseError:
                country = None
            usage = dspy.settings.lm.history[-1]["usage"]
            decision = ep.step(
                answer=country,
                tokens=usage.get("completion_tokens") or 0,
                ctx_tokens=usage.get("prompt_tokens") or 0,
                action="search",
            )
            if decision.stop:
                break
            query = next_query(question, passages[-1])
        return dspy.Prediction(country=ep.answer)


def main() -> None:
    """Run it in full and governed."""
    asked = arguments(__doc__, questions=6)
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # prices are not looked up
    with local_model() as model:
        dspy.configure(
            lm=dspy.LM(
                f"openai/{NAME}",
                api_base=f"{model.url}/v1",
                api_key="unused",
                temperature=0.0,
                max_tokens=48,
                cache=False,
                num_retries=0,
            )
        )
        rag = IterativeRag(Index(corpus()))

        def loop(question: Question, ep: Episode) -> None:
            rag(question=question.text, ep=ep)

        compare(
            questions(asked.questions),
            loop,
            title="iterative RAG with DSPy",
            scorer="text",
            policy=POLICY,
            verbose=asked.verbose,
        )


if __name__ == "__main__":
    main()
