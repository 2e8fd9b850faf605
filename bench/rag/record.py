"""Records five-round retrieval runs with the demonstration's 1.5B model; resumable.

    SUFFICE_RAG=… nice -n 19 python -m bench.rag.record --out runs.jsonl [--only 2wiki] [--limit N]

A line is one question in the form of `suffice replay`, with neither its text nor its gold answer. A killed recording
goes on where it stopped; questions come as 1, 501, 2, 502 …, first all of 2Wiki, then MuSiQue. Needs the package
suffice-demo, and fetches its weights (1.1 GB) the first time. `--url` names a llama.cpp server of the same weights that
runs already, such as one built for this processor. `--slots N` asks N questions at once, each in a slot of its own; a
server decodes eight tokens of eight questions in the time of two.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from bench.rag.questions import SETS, PassageIndex, Question, data_folder, interleave, read_passages, read_questions
from bench.rag.rounds import N_PASSAGES, N_ROUNDS, LlamaServer, Model, Round, run_rounds, shared_prefix

from suffice.replay.traces.rows import RunLog, RunRow, StepRow
from suffice.scoring.base import build_scorer
from suffice.scoring.scorer import Scorer

MODEL = "qwen1.5b"
SCORER = "squad"  # Exact Match as 2WikiMultiHopQA and MuSiQue measure it
START_TIMEOUT_S = 86_400.0  # at the lowest priority the server loads when others leave time
RUN = f"{N_ROUNDS} rounds of {N_PASSAGES}"


def trace_row(name: str, question: Question, rounds: Sequence[Round], scorer: Scorer) -> RunRow:
    gold = scorer.normalise(question.gold) or ""
    steps = []
    for one in rounds:
        answer = scorer.normalise(one.answer)
        steps.append(
            StepRow(
                tokens=one.tokens,
                ctx_tokens=one.prompt_read + one.prompt_new,
                answer=answer,
                correct=scorer.match(answer, gold),
                stated_confidence=one.p_done,
                entropy=one.entropy,
                margin=one.margin,
                logprobs=one.logprobs,
                stop_flag=one.is_done,
            )
        )
    known = {
        "position": question.position,
        "type": question.type,
        "hops": question.n_hops,
        "prompt_read": [one.prompt_read for one in rounds],
        "done_tokens": [one.done_tokens for one in rounds],
    }
    return RunRow(
        dataset=name,
        setting="iterative_rag",
        task=name,
        model=MODEL,
        run=RUN,
        question_id=question.id,
        aggregation="last",
        full_answer=steps[-1].answer,
        full_em=bool(steps[-1].correct),
        full_tokens=sum(step.tokens + (step.ctx_tokens or 0) for step in steps),
        steps=steps,
        token_source="engine",
        meta=json.dumps(known),
    )


def record_set(models: Sequence[Model], folder: Path, name: str, limit: int, log: RunLog) -> Iterator[Sequence[Round]]:
    """Record what is missing of the first `limit` questions, one at a time with each model, and yield their rounds."""
    scorer, passages = build_scorer(SCORER), read_passages(folder, name)
    index = PassageIndex(passages)
    known = {question_id for dataset, *_, question_id in log.ids if dataset == name}
    free: SimpleQueue[Model] = SimpleQueue()
    for model in models:
        free.put(model)

    def record(question: Question) -> tuple[Question, list[Round]]:
        model = free.get()
        # Cuts the slot's cache back to what all calls share, so that a run does not depend on the one before.
        model.complete(shared_prefix(model), 1)
        rounds = run_rounds(
            model, question.text, lambda query, read: index.search(query, N_PASSAGES, without=read), passages
        )
        free.put(model)
        return question, rounds

    with ThreadPoolExecutor(len(models)) as pool:
        asked = [q for q in interleave(read_questions(folder, name))[:limit] if q.id not in known]
        try:
            for done in as_completed([pool.submit(record, question) for question in asked]):
                question, rounds = done.result()
                log.append(trace_row(name, question, rounds, scorer))
                yield rounds
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of runs; what it holds is not recorded again")
    parser.add_argument("--only", choices=SETS, help="one of the two sets")
    parser.add_argument("--limit", type=int, default=10**9, help="questions of each set")
    parser.add_argument("--threads", type=int, default=2, help="of the model server")
    parser.add_argument("--url", help="of a model server that runs already")
    parser.add_argument("--slots", type=int, default=1, help="questions asked at once")
    asked = parser.parse_args()
    with RunLog(asked.out) as log, _served(asked.url, asked.threads, asked.slots) as url:
        models = [LlamaServer(url, slot=slot) for slot in range(asked.slots)]
        begin = time.monotonic()
        for name in (asked.only,) if asked.only else SETS:
            for done, _ in enumerate(record_set(models, data_folder(), name, asked.limit, log), 1):
                seconds = (time.monotonic() - begin) / done
                print(f"{name}: {len(log.ids)} runs recorded, {seconds:.0f} s a question", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _served(url: str | None, n_threads: int, n_slots: int) -> Iterator[str]:
    if url:
        yield url
        return
    from suffice_demo.local import weights
    from suffice_demo.local.server import LocalServer, ServerSpec

    spec = ServerSpec(
        model_path=weights.fetch(MODEL),
        alias=MODEL,
        n_parallel=n_slots,
        ctx_tokens_per_slot=4096,
        n_threads=n_threads,
        idle_cache_mib=0,
    )
    with LocalServer(spec, start_timeout_s=START_TIMEOUT_S) as server:
        yield server.url


if __name__ == "__main__":
    sys.exit(main())
