"""Records five-round retrieval runs with the demonstration's 1.5B model; resumable.

    SUFFICE_RAG=… nice -n 19 python -m bench.rag.record --out runs.jsonl [--only 2wiki] [--limit N]

A line is one question in the form of `suffice replay`, with neither its text nor its gold answer. A killed recording
goes on where it stopped; questions come as 1, 501, 2, 502 …, first all of 2Wiki, then MuSiQue. Needs the package
suffice-demo, and fetches its weights (1.1 GB) the first time. `--url` names a llama.cpp server of the same weights that
runs already, such as one built for this processor; `--part 1/2` and `2/2` share the questions between two recordings,
each with a server and a file of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.rag.questions import SETS, PassageIndex, Question, data_folder, interleave, read_passages, read_questions
from bench.rag.rounds import N_PASSAGES, N_ROUNDS, LlamaServer, Model, Round, run_rounds, shared_prefix

from suffice.replay.traces.rows import RunLog, RunRow, StepRow
from suffice.scoring.base import Scorer, build_scorer

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


def record_set(
    model: Model, folder: Path, name: str, limit: int, log: RunLog, *, part: tuple[int, int] = (1, 1)
) -> Iterator[Round]:
    """Record what is missing of the first `limit` questions, and yield their rounds.

    part  (k, n): every n-th question, from the k-th on
    """
    scorer, passages = build_scorer(SCORER), read_passages(folder, name)
    index = PassageIndex(passages)
    known = {question_id for dataset, *_, question_id in log.ids if dataset == name}
    for question in interleave(read_questions(folder, name))[:limit][part[0] - 1 :: part[1]]:
        if question.id in known:
            continue
        # Cuts the server's cache back to what all calls share, so that a run does not depend on the one before.
        model.complete(shared_prefix(model), 1)
        rounds = run_rounds(
            model, question.text, lambda query, read: index.search(query, N_PASSAGES, without=read), passages
        )
        log.append(trace_row(name, question, rounds, scorer))
        yield from rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of runs; what it holds is not recorded again")
    parser.add_argument("--only", choices=SETS, help="one of the two sets")
    parser.add_argument("--limit", type=int, default=10**9, help="questions of each set")
    parser.add_argument("--threads", type=int, default=2, help="of the model server")
    parser.add_argument("--url", help="of a model server that runs already")
    parser.add_argument(
        "--part", type=_part, default=(1, 1), metavar="K/N", help="every N-th question from the K-th on"
    )
    asked = parser.parse_args()
    with RunLog(asked.out) as log, _served(asked.url, asked.threads) as url:
        begin, done = time.monotonic(), 0
        for name in (asked.only,) if asked.only else SETS:
            recorded = record_set(LlamaServer(url), data_folder(), name, asked.limit, log, part=asked.part)
            for n_rounds, _ in enumerate(recorded, 1):
                if n_rounds % N_ROUNDS == 0:
                    done += 1
                    seconds = (time.monotonic() - begin) / done
                    print(f"{name}: {len(log.ids)} runs recorded, {seconds:.0f} s a question", file=sys.stderr)
    return 0


def _part(text: str) -> tuple[int, int]:
    k, n = (int(number) for number in text.split("/"))
    if not 1 <= k <= n:
        raise ValueError(text)
    return k, n


@contextlib.contextmanager
def _served(url: str | None, n_threads: int) -> Iterator[str]:
    if url:
        yield url
        return
    from suffice_demo.local import weights
    from suffice_demo.local.server import LocalServer, ServerSpec

    spec = ServerSpec(
        model_path=weights.fetch(MODEL),
        alias=MODEL,
        n_parallel=1,
        ctx_tokens_per_slot=4096,
        n_threads=n_threads,
        idle_cache_mib=0,
    )
    with LocalServer(spec, start_timeout_s=START_TIMEOUT_S) as server:
        yield server.url


if __name__ == "__main__":
    sys.exit(main())
