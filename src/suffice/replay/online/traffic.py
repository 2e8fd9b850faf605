"""Reads recorded runs as traffic, with the other orders that the samples of a recorded vote could have had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np

from suffice.episode.vote import deciding_sample
from suffice.learn.audits import Ints, SampleOrders
from suffice.learn.sample_orders import draw_orders
from suffice.replay.online.stream import RecordedTraffic, make_traffic
from suffice.replay.study.runs import Runs, concatenate, make_runs, read_runs
from suffice.replay.traces.columns import Batch
from suffice.replay.traces.read import Survey
from suffice.replay.traces.rows import StepRow

_BY_STEP: Final = {*StepRow.__struct_fields__, "answer_code"}
_OF_ALL: Final = {"set", "kind", "file", "vote", "stated", "offset", "answers"}


def read_traffic(
    sets: Sequence[Survey], needs: Sequence[str], *, probe_tokens: int | None, longest: int
) -> tuple[RecordedTraffic, int]:
    """The runs of some sets as traffic, and the number of runs of the first. Raise TraceError as reading does.

    A set that memory does not hold as a whole comes in the recorded order of samples only.
    """
    parts = [read_runs(one, needs, probe_tokens=probe_tokens, longest=longest) for one in sets]
    traffic = make_traffic(concatenate(parts))
    if sets[0].kind != "samples" or any(one.share < 1 for one in sets):
        return traffic, len(parts[0])
    orders, counts = list[Runs](), [np.zeros(1, dtype=np.int64)]
    for one in sets:
        for batch in one.batches(share=one.share):
            which, steps = _other_orders(batch)
            counts.append(np.bincount(which, minlength=len(batch)))
            if len(which):
                reordered = _select(batch, which, steps)
                orders.append(make_runs(reordered, needs, probe_tokens=probe_tokens, planned_steps=longest))
    if not orders:
        return traffic, len(parts[0])
    known = SampleOrders(make_traffic(concatenate(orders), traffic.chosen).runs, np.cumsum(np.concatenate(counts)))
    return replace(traffic, runs=replace(traffic.runs, orders=known)), len(parts[0])


def _other_orders(batch: Batch) -> tuple[Ints, Ints]:
    """Runs of a batch, each once for every other order of its samples, and the steps of all of these."""
    which, steps = list[int](), [np.zeros(0, dtype=np.int64)]
    for i in np.flatnonzero(~batch.differs).tolist() if batch.vote else ():
        start, end = int(batch.offset[i]), int(batch.offset[i + 1])
        answers = batch.answer[start:end]
        n_decided = deciding_sample(answers, end - start) or end - start
        name = "\n".join((batch.dataset[i], batch.model[i], batch.run[i], batch.question_id[i]))
        for order in draw_orders(answers[:n_decided], end - start, key=name):
            which.append(i)
            steps += [start + np.array(order), np.arange(start + n_decided, end)]
    return np.array(which, dtype=np.int64), np.concatenate(steps)


def _select(batch: Batch, which: Ints, steps: Ints) -> Batch:
    chosen: dict[str, Any] = {}
    for column in fields(Batch):
        if column.name not in _OF_ALL:
            values, places = getattr(batch, column.name), steps if column.name in _BY_STEP else which
            taken = values[places] if isinstance(values, np.ndarray) else [values[at] for at in places.tolist()]
            chosen[column.name] = taken
    return replace(batch, offset=np.concatenate([[0], np.cumsum(np.diff(batch.offset)[which])]), **chosen)
