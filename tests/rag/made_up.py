"""A made-up data set in the form of the folder SUFFICE_RAG, a scripted model, and made-up recordings."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from math import log
from pathlib import Path

from bench.rag.questions import Question
from bench.rag.record import trace_row
from bench.rag.rounds import N_ROUNDS, Reply, Round

from suffice.replay.traces.rows import RunRow
from suffice.scoring.base import build_scorer

WORDS = ("amber", "basalt", "cedar", "dune", "ember", "fjord", "grove", "harbour", "islet", "juniper")


def write_folder(folder: Path, n_questions: int = 8) -> Path:
    for name in ("2wiki", "musique"):
        questions = [
            {"question_id": f"{name}-{i}", "question": f"Who built {WORDS[i % 10]}?", "answer": f"mason {i}", "hops": 2}
            for i in range(n_questions)
        ]
        corpus = [{"title": word.title(), "text": f"{word} was built by a mason"} for word in WORDS]
        for kind, rows in (("questions", questions), ("corpus", corpus)):
            with gzip.open(folder / f"{name}.{kind}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


class ScriptedModel:
    """A token is a word. The answer names the number of passages it was shown; it is done from the third call on."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.prompts: list[str] = []
        self.answer_prompts: list[list[int]] = []

    def tokenize(self, text: str) -> list[int]:
        return [self._token(word) for word in text.replace("\n", " \n ").split(" ")]

    def _token(self, word: str) -> int:
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def complete(self, prompt: Sequence[int], most_tokens: int) -> Reply:
        text = " ".join(self.words[token] for token in prompt)
        self.prompts.append(text)
        if text.endswith("Answer:"):
            self.answer_prompts.append(list(prompt[: -len(self.tokenize("Answer:"))]))
        n_passages = text.count("was built by")
        if text.endswith("Done:"):
            p_yes = 0.2 if n_passages < 6 else 0.9
            rivals = ((" yes", log(p_yes)), (" no", log(1 - p_yes)))
            return Reply(text=" no", tokens=(self._token("no"),), logprobs=(rivals[1][1],), rivals=rivals)
        output = f"mason {n_passages}" if text.endswith("Answer:") else f"{WORDS[n_passages % 10]} mason"
        tokens = tuple(self.tokenize(output))[:most_tokens]
        return Reply(
            text=f" {output}", tokens=tokens, logprobs=(-0.1,) * len(tokens), rivals=((" a", -0.2), (" b", -3.0))
        )


def made_up_run(position: int, rng: random.Random) -> RunRow:
    """The answer is found in a round that differs, is kept from then on, and is sure; one run in ten never finds it."""
    result = rng.choice((1, 1, 2, 2, 3)) if rng.random() < 0.9 else N_ROUNDS + 1
    rounds = []
    for index in range(1, N_ROUNDS + 1):
        sure = index >= result
        rounds.append(
            Round(
                answer=f"right {position}" if sure else f"guess {rng.randrange(3)}",
                logprobs=(-0.02 if sure else -1.5 - rng.random(),),
                entropy=0.1 if sure else 1.5,
                margin=0.9 if sure else 0.2,
                p_done=0.9 if sure and index > result else 0.1,
                prompt_read=80 + 130 * (index - 1),
                prompt_new=150,
                done_tokens=8,
                tokens=8 if index == N_ROUNDS else 18,
                query="",
            )
        )
    question = Question(id=f"q{position}", position=position, text="?", gold=f"right {position}", type="", n_hops=2)
    return trace_row("2wiki", question, rounds, build_scorer("squad"))
