"""One retrieval loop: passages, an answer, whether the model says that it is done, and what to look up next.

Each round is a call of its own: all passages so far, then the question, so that an engine with a prefix cache reads a
passage once and no answer leans on the one before. The three parts of a reply are asked for one after the other with
their labels given: a small model keeps the form, and a run goes on behind "yes".
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log
from typing import Any, Protocol

N_ROUNDS = 5
N_PASSAGES = 2  # new ones a round
MOST_ANSWER_TOKENS = 24
MOST_QUERY_TOKENS = 24
N_RIVALS = 20  # log-probabilities listed for each generated token

SYSTEM = (
    "Answer a question from the passages that searches have found. Reply in three lines:\n"
    "Answer: the shortest exact answer, such as a name, a date, yes or no. Guess if the passages do not tell.\n"
    "Done: yes if the passages prove the answer, no if something has to be looked up first.\n"
    "Search: what to look up next."
)
# Two made-up calls that show the form: one where the passages prove the answer, and one where they do not yet.
EXAMPLES = (
    (
        (
            "[Search: Who wrote The Glass Orchard?]\nThe Glass Orchard: a 1934 novel by Ada Brandt.\n\n"
            "Question: Who wrote The Glass Orchard?"
        ),
        "Answer: Ada Brandt\nDone: yes",
    ),
    (
        (
            "[Search: Where was the director of Pale Harbour born?]\nPale Harbour: a 1961 drama film by Inga Holt.\n\n"
            "Question: Where was the director of Pale Harbour born?"
        ),
        "Answer: Norway\nDone: no\nSearch: Inga Holt",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model wrote up to the end of its line."""

    text: str
    tokens: tuple[int, ...]  # of `text`
    logprobs: tuple[float, ...]  # of these tokens
    rivals: tuple[tuple[str, float], ...]  # of the first token: texts and log-probabilities, the likeliest first


class Model(Protocol):
    def tokenize(self, text: str) -> Sequence[int]: ...

    def complete(self, prompt: Sequence[int], most_tokens: int) -> Reply: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    answer: str
    logprobs: tuple[float, ...]
    entropy: float | None  # nats, of the answer's first token; None: there is none
    margin: float | None  # probability of that token minus the runner-up's
    p_done: float | None  # probability of "yes" among "yes" and "no"; None: the model gave neither
    prompt_read: int  # prompt tokens that the call before has read too; in round 1 those that all calls share
    prompt_new: int  # the other prompt tokens
    done_tokens: int  # generated up to the end of the line "Done"
    tokens: int  # generated in all
    query: str  # what to look up next; "": the last round

    @property
    def is_done(self) -> bool:
        return self.p_done is not None and self.p_done > 0.5


class LlamaServer:
    """llama.cpp's own completion API, which takes and returns tokens."""

    def __init__(self, url: str, *, slot: int = 0, timeout_s: float = 86_400.0) -> None:
        self._url, self._slot, self._timeout_s = url, slot, timeout_s
        self.tokenize = cache(self._tokenize)

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self._post("/tokenize", {"content": text, "parse_special": True})["tokens"])

    def complete(self, prompt: Sequence[int], most_tokens: int) -> Reply:
        body = self._post(
            "/completion",
            {
                "prompt": list(prompt),
                "n_predict": most_tokens,
                "temperature": 0,
                "n_probs": N_RIVALS,
                "stop": ["\n"],
                "cache_prompt": True,
                "id_slot": self._slot,
            },
        )
        listed = body.get("completion_probabilities") or []
        kept = []
        for token in listed:
            if "\n" in token["token"] or token["id"] in self._ends:
                break
            kept.append(token)
        first = listed[0]["top_logprobs"] if listed else []
        return Reply(
            text=b"".join(bytes(token["bytes"]) for token in kept).decode("utf-8", "replace"),  # "ō" may be two tokens
            tokens=tuple(token["id"] for token in kept),
            logprobs=tuple(min(0.0, token["logprob"]) for token in kept),
            rivals=tuple((rival["token"], min(0.0, rival["logprob"])) for rival in first),
        )

    @property
    def _ends(self) -> tuple[int, ...]:
        return self.tokenize("<|im_end|>")

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self._url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:
            return json.load(reply)


def shared_prefix(model: Model) -> list[int]:
    """The tokens with which every call begins."""
    turns = [("system", SYSTEM)]
    for user, assistant in EXAMPLES:
        turns += [("user", user), ("assistant", assistant)]
    written = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return [*model.tokenize(f"{written}<|im_start|>user\n")]


def run_rounds(
    model: Model, question: str, search: Callable[[str, Sequence[int]], list[int]], passages: Sequence[str]
) -> list[Round]:
    """A full run of N_ROUNDS rounds, whatever the model says of being done.

    search  a query and the passages that were read → indexes of new ones
    """
    context = shared_prefix(model)
    n_known, read, query, rounds = len(context), list[int](), question, list[Round]()
    for index in range(1, N_ROUNDS + 1):
        # With the question's words: a small model often asks for its own guess.
        found = search(question if index == 1 else f"{question} {query}", read)
        read += found
        shown = "\n".join(passages[i] for i in found) or "Nothing was found."
        context += model.tokenize(f"[Search: {query}]\n{shown}\n")
        asked = model.tokenize(f"\nQuestion: {question}<|im_end|>\n<|im_start|>assistant\n")
        rounds.append(_round(model, [*context, *asked], n_known, is_last=index == N_ROUNDS))
        n_known, query = len(context), rounds[-1].query
    return rounds


def _round(model: Model, prompt: Sequence[int], n_known: int, *, is_last: bool) -> Round:
    tokens, n_prompt = [*prompt], len(prompt)
    tokens += model.tokenize("Answer:")
    answer = model.complete(tokens, MOST_ANSWER_TOKENS)
    tokens += [*answer.tokens, *model.tokenize("\nDone:")]
    p_done = _p_yes(model.complete(tokens, 1).rivals)
    tokens += model.tokenize(" yes" if p_done is not None and p_done > 0.5 else " no")
    n_done, query = len(tokens), ""
    if not is_last:
        tokens += model.tokenize("\nSearch:")
        reply = model.complete(tokens, MOST_QUERY_TOKENS)
        tokens += reply.tokens
        query = reply.text.strip()
    tokens += model.tokenize("<|im_end|>")
    values = [exp(value) for _, value in answer.rivals]
    return Round(
        answer=answer.text.strip(),
        logprobs=answer.logprobs,
        entropy=_entropy(values) if values else None,
        margin=max(0.0, values[0] - values[1]) if len(values) > 1 else None,
        p_done=p_done,
        prompt_read=n_known,
        prompt_new=n_prompt - n_known,
        done_tokens=n_done - n_prompt + 1,  # with the token that ends the reply
        tokens=len(tokens) - n_prompt,
        query=query,
    )


def _entropy(values: Sequence[float]) -> float:
    """In nats; what is not listed counts as one more."""
    rest = max(0.0, 1.0 - sum(values))
    return max(0.0, -sum(p * log(p) for p in (*values, rest) if p > 1e-12))


def _p_yes(rivals: Sequence[tuple[str, float]]) -> float | None:
    yes, no = (sum(exp(v) for text, v in rivals if text.strip().lower() == word) for word in ("yes", "no"))
    return yes / (yes + no) if yes + no > 0 else None
