"""Iterative retrieval: each round reads one more passage and answers again, until the answer stands.

    python examples/iterative_rag.py

The questions need two or three passages that name each other (a book, its author, a city, a country), so
one search is not enough and the number of rounds differs. The index is a BM25 over 402 passages.
"""

from __future__ import annotations

import re

from bm25 import Index
from compare import arguments, compare
from corpus import Question, corpus, questions
from local_model import Model, local_model
from suffice import Episode

ROUNDS = 6
POLICY = {"policy": "stable-answer", "streak": 3}  # its default: three rounds in a row with the same answer


def prompt(question: str, passages: list[str]) -> list[dict[str, str]]:
    """Passages first: those of earlier rounds are in the server's prefix cache."""
    read = "\n".join(passages)
    return [{"role": "user", "content": f"{read}\n\n{question} Answer with the name of the country only."}]


def next_query(question: str, passage: str) -> str:
    """What the passage names and the question does not is what to look for; the question says in what respect."""
    names = [word for word in re.findall(r"[A-Z]\w+", passage) if word not in question]
    return " ".join([*re.findall(r"\b[a-z]\w+", question), *names])


def loop(model: Model, index: Index, question: Question, ep: Episode) -> None:
    """The loop that is governed: `ep.step` is all that Suffice needs of it."""
    passages: list[str] = []
    query = question.text
    for _ in range(ROUNDS):
        passages += index.search(query, 1, without=passages)
        said = model.ask(prompt(question.text, passages), max_tokens=10)
        decision = ep.step(
            answer=said.text, tokens=said.tokens, ctx_tokens=said.ctx_tokens, logprobs=said.logprobs, action="search"
        )
        if decision.stop:
            break
        query = next_query(question.text, passages[-1])


def main() -> None:
    """Run it in full and governed."""
    asked = arguments(__doc__, questions=24)
    index = Index(corpus())
    with local_model() as model:
        compare(
            questions(asked.questions),
            lambda question, ep: loop(model, index, question, ep),
            title="iterative RAG",
            scorer="text",
            policy=POLICY,
            verbose=asked.verbose,
        )


if __name__ == "__main__":
    main()
