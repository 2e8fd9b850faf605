"""The loop of iterative_rag.py as a LangGraph graph: the edge behind `answer` asks Suffice where to go.

`pip install langgraph`, then `python examples/langgraph_rag.py`.
"""

from __future__ import annotations

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from bm25 import Index
from compare import arguments, compare
from corpus import Question, corpus, questions
from iterative_rag import POLICY, ROUNDS, next_query, prompt
from local_model import Model, local_model
from suffice import Episode


class State(TypedDict):
    """What goes round."""

    question: str
    query: str
    passages: list[str]
    goes_on: bool


def graph(model: Model, index: Index, ep: Episode) -> Any:
    """search ──▶ answer ──▶ search again, or the end."""

    def search(state: State) -> dict[str, Any]:
        return {"passages": state["passages"] + index.search(state["query"], 1, without=state["passages"])}

    def answer(state: State) -> dict[str, Any]:
        said = model.ask(prompt(state["question"], state["passages"]), max_tokens=10)
        decision = ep.step(
            answer=said.text, tokens=said.tokens, ctx_tokens=said.ctx_tokens, logprobs=said.logprobs, action="search"
        )
        goes_on = not decision.stop and len(ep.history) < ROUNDS
        return {"goes_on": goes_on, "query": next_query(state["question"], state["passages"][-1])}

    built = StateGraph(State)
    built.add_node("search", search)
    built.add_node("answer", answer)
    built.add_edge(START, "search")
    built.add_edge("search", "answer")
    built.add_conditional_edges("answer", lambda state: "search" if state["goes_on"] else END, ["search", END])
    return built.compile()


def loop(model: Model, index: Index, question: Question, ep: Episode) -> None:
    """One run of the graph."""
    start = State(question=question.text, query=question.text, passages=[], goes_on=True)
    graph(model, index, ep).invoke(start, {"recursion_limit": 4 * ROUNDS})


def main() -> None:
    """Run it in full and governed."""
    asked = arguments(__doc__, questions=24)
    index = Index(corpus())
    with local_model() as model:
        compare(
            questions(asked.questions),
            lambda question, ep: loop(model, index, question, ep),
            title="iterative RAG with LangGraph",
            scorer="text",
            policy=POLICY,
            verbose=asked.verbose,
        )


if __name__ == "__main__":
    main()
