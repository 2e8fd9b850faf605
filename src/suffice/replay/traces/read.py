"""Reads recorded runs from files into batches, with checks and selection, and surveys a set in little memory."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import as_file, files
from itertools import compress, islice
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import numpy as np

from suffice.arrays import Bools
from suffice.episode.checkpoints import Proposer
from suffice.errors import ConfigError, TraceError
from suffice.executor import Executor, SerialExecutor, limit_memory
from suffice.policy.folded_version import place_of
from suffice.replay.traces.columns import Batch, Hashes, TraceColumns, as_batches, check_columns, check_unique
from suffice.replay.traces.formats import SUFFIXES, FileShard, read_shard, split_file
from suffice.replay.traces.rows import STEP_COLUMNS
from suffice.types import Kind

BATCH_ROWS: Final = 20_000
MOST_READ_BYTES: Final = 8 * 2**30  # that a worker may use to read a shard for the first time
COLUMNS: Final = ("dataset", "setting", "task", "model", "run", "question_id")


Selection: TypeAlias = Callable[[TraceColumns], Bools]  # the runs of a chunk to keep


def parse_where(text: str | None) -> Selection:
    """Parse conditions; None holds for all runs. Raise ConfigError."""
    tests: dict[tuple[str, bool], list[Callable[[str], object]]] = defaultdict(list)  # (column, wanted) → alternatives
    for condition in () if text is None else text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(!?=)\s*(.*?)\s*", condition, re.DOTALL)
        if match is None or match[1] not in COLUMNS:
            allowed = f"COLUMN=VALUE or COLUMN!=VALUE with a column of {', '.join(COLUMNS)}"
            raise ConfigError(f"where: cannot read {condition.strip()!r:.100}; allowed: {allowed}")
        pattern = re.compile(re.escape(match[3]).replace(r"\*", ".*"), re.DOTALL)
        tests[match[1], match[2] == "="].append(pattern.fullmatch)

    def holds(columns: TraceColumns) -> Bools:
        chosen = np.ones(len(columns), dtype=bool)
        for (name, wanted), alternatives in tests.items():
            column = columns.texts[name]
            words = [any(test(word) for test in alternatives) for word in column.words]
            chosen &= np.array([*words, False])[column.codes] == wanted
        return chosen

    return holds


def set_name(path: str | Path) -> str:
    """Name of the set in a file: its stem without `.dev` and `.heldout`, or the route of an archive's file."""
    name, route = Path(path).name, Path(path).parent.parent.name
    if route.startswith("route="):
        return unquote(route.removeprefix("route="))
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        name = name.removesuffix(suffix)
    return name.removesuffix(".dev").removesuffix(".heldout")


def read_traces(
    paths: Iterable[str | Path],
    *,
    where: str | None = None,
    batch_rows: int = BATCH_ROWS,
    keep: Selection | None = None,
) -> Iterator[Batch]:
    """Read files of recorded runs in batches, in the order of their rows.

    where       conditions such as "task=mmlu_pro,model!=gpt*"
    batch_rows  largest number of runs in a batch, at least 1
    keep        the matching runs that are wanted; None: all

    Memory is one batch plus 8 bytes per run, to find duplicates; each setting in a chunk makes its own batch. Raise
    TraceError (file, row, column) for invalid data and when nothing matches; ConfigError for invalid conditions.
    """
    if batch_rows < 1:
        raise ValueError(f"batch_rows: got {batch_rows}; needs at least 1")
    return _read([FileShard(Path(path)) for path in paths], where, parse_where(where), batch_rows, keep)


def _read(
    shards: Sequence[FileShard], where: str | None, matches: Selection, batch_rows: int, keep: Selection | None
) -> Iterator[Batch]:
    seen: defaultdict[str, Hashes] = defaultdict(lambda: NO_HASHES)
    notes = ReadNotes()
    for shard in shards:
        n_before, name = notes.n_rows, set_name(shard.path)
        for columns in read_shard(shard, batch_rows=batch_rows):
            check_columns(columns)
            seen[name] = check_unique(columns, seen[name])
            yield from as_batches(notes.select(columns, matches, keep), name)
        if notes.n_rows == n_before:
            raise TraceError("contains no runs", file=str(shard.path))
    notes.refuse_nothing(where, [one.path for one in shards])


NO_HASHES: Final[Hashes] = np.empty(0, dtype=np.uint64)


@dataclass(slots=True)
class ReadNotes:
    """What the runs of some chunks are called, for the error when no condition matches."""

    n_rows: int = 0
    n_chosen: int = 0
    tasks: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)

    def select(self, columns: TraceColumns, matches: Selection, keep: Selection | None = None) -> TraceColumns:
        self.tasks.update(columns.texts["task"].words[:10])
        self.models.update(columns.texts["model"].words[:10])
        chosen = columns.select(matches(columns))
        self.n_rows, self.n_chosen = self.n_rows + len(columns), self.n_chosen + len(chosen)
        return chosen if keep is None else chosen.select(keep(chosen))

    def refuse_nothing(self, where: str | None, files: Iterable[Path]) -> None:
        if where is not None and not self.n_chosen:
            known = f"tasks {', '.join(sorted(self.tasks)[:10])}; models {', '.join(sorted(self.models)[:10])}"
            raise TraceError(f"no run matches {where!r}; there are {known}", file=", ".join(map(str, files)))


MOST_STEPS = 500_000  # in memory at once; a larger set is sampled for fitting and picking


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    set: str
    files: tuple[Path, ...]
    where: str | None
    kind: Kind
    n_runs: int
    n_steps: int
    longest: int  # steps of the longest run, as a live route's cap
    good_runs: frozenset[tuple[str, str]] | None  # (model, run) pairs with a high enough EM; None: all
    shards: tuple[FileShard, ...] = ()  # of the files
    most_steps: int = MOST_STEPS  # in memory at once
    proposer: Callable[[], Proposer] | None = None  # a new one for each run; None: every checkpoint is probed

    @property
    def share(self) -> float:
        return min(1.0, self.most_steps / max(1, self.n_steps))

    def batches(self, *, share: float = 1.0, shard: FileShard | None = None) -> Iterator[Batch]:
        """All batches, or those of one shard, which `survey` has checked."""
        keep = partial(self._is_kept, share)
        if shard is None:
            batches = read_traces(self.files, where=self.where, keep=keep)
        else:
            notes, matches = ReadNotes(), parse_where(self.where)
            chunks = (notes.select(one, matches, keep) for one in read_shard(shard, batch_rows=BATCH_ROWS))
            batches = (batch for chunk in chunks for batch in as_batches(chunk, set_name(shard.path)))
        for batch in batches:
            yield batch if self.proposer is None else join_unproposed(batch, self.proposer)

    def _is_kept(self, share: float, columns: TraceColumns) -> Bools:
        kept = np.ones(len(columns), dtype=bool)
        if self.good_runs is not None:
            pairs = zip(columns.names("model"), columns.names("run"), strict=True)
            kept &= np.array([pair in self.good_runs for pair in pairs], dtype=bool)
        if share < 1:
            places = [place_of(question, purpose="survey") for question in columns.names("question_id")]
            kept &= np.array(places) < share
        return kept


def survey(
    files: Sequence[str | Path],
    *,
    where: str | None = None,
    min_run_em: float | None = None,
    most_steps: int = MOST_STEPS,
    proposer: Callable[[], Proposer] | None = None,
    executor: Executor | None = None,
) -> list[Survey]:
    """Survey all files; one entry per set, in order of appearance.

    min_run_em  keep only (model, run) pairs whose full EM over the set is above it, in [0, 1)
    most_steps  of a set in memory at once, at least 1
    proposer    chooses the checkpoints that are probed, a new one for each run; None: all are
    executor    reads the shards of the files; None: this process, which a damaged Parquet file may end

    Raise TraceError as `read_traces` does, for a set of several kinds, and when no run is left.
    """
    by_set: dict[str, list[Path]] = {}
    for file in files:
        by_set.setdefault(set_name(file), []).append(Path(file))
    paths = [path for of_set in by_set.values() for path in of_set]
    parse_where(where)
    run = executor or SerialExecutor()
    shards = list(run.map(split_file, paths))
    parts = run.map(partial(_survey_shard, where), [shard for of_file in shards for shard in of_file])
    counts = {path: list(islice(parts, len(of_file))) for path, of_file in zip(paths, shards, strict=True)}
    surveys = list[Survey]()
    for name, of_set in by_set.items():
        known = _merge([counts[path] for path in of_set], of_set, where)
        own = tuple(shard for path, of_file in zip(paths, shards, strict=True) if path in of_set for shard in of_file)
        one = _summarise(name, of_set, where, min_run_em, known)
        surveys.append(replace(one, shards=own, most_steps=most_steps, proposer=proposer))
    return surveys


@dataclass(slots=True)
class ShardCounts:
    """Counts of the runs that conditions select, and hashes of the ids of all runs."""

    notes: ReadNotes = field(default_factory=ReadNotes)
    kinds: set[Kind] = field(default_factory=set)
    n_steps: int = 0
    longest: int = 0
    n_runs: Counter[tuple[str, str]] = field(default_factory=Counter)  # by model and run
    n_right: Counter[tuple[str, str]] = field(default_factory=Counter)
    hashes: Hashes = field(default_factory=lambda: NO_HASHES)

    def add(self, batch: Batch) -> None:
        self.kinds.add(batch.kind)
        self.n_steps += len(batch.tokens)
        self.longest = max(self.longest, int(np.diff(batch.offset).max(initial=0)))
        pairs = list(zip(batch.model, batch.run, strict=True))
        self.n_runs.update(pairs)
        self.n_right.update(compress(pairs, batch.full_em))


def _survey_shard(where: str | None, shard: FileShard) -> ShardCounts:
    limit_memory(MOST_READ_BYTES)
    matches, counts = parse_where(where), ShardCounts()
    for columns in read_shard(shard, batch_rows=BATCH_ROWS):
        check_columns(columns)
        counts.hashes = check_unique(columns, counts.hashes)
        for batch in as_batches(counts.notes.select(columns, matches), set_name(shard.path)):
            counts.add(batch)
    return counts


def _merge(parts: Sequence[Sequence[ShardCounts]], files: Sequence[Path], where: str | None) -> ShardCounts:
    """Raise TraceError for a file without runs, a run that two shards have, and when no run matches."""
    whole = ShardCounts()
    for path, of_file in zip(files, parts, strict=True):
        if not sum(one.notes.n_rows for one in of_file):
            raise TraceError("contains no runs", file=str(path))
        for one in of_file:
            whole.kinds |= one.kinds
            whole.n_steps, whole.longest = whole.n_steps + one.n_steps, max(whole.longest, one.longest)
            whole.n_runs.update(one.n_runs)
            whole.n_right.update(one.n_right)
            whole.notes.n_chosen += one.notes.n_chosen
            whole.notes.tasks |= one.notes.tasks
            whole.notes.models |= one.notes.models
    whole.notes.refuse_nothing(where, files)
    hashes = np.concatenate([one.hashes for of_file in parts for one in of_file])
    if len(np.unique(hashes)) < len(hashes):
        for _ in read_traces(files):  # raises where the second of two equal ones stands
            pass
    return whole


def _summarise(
    name: str, files: Sequence[Path], where: str | None, min_run_em: float | None, counts: ShardCounts
) -> Survey:
    n_runs, n_steps = counts.n_runs, counts.n_steps
    if len(counts.kinds) != 1:
        what = ", ".join(sorted(counts.kinds)) or "no runs"
        raise TraceError(f"contains {what}; all runs of a set must be of one kind", file=", ".join(map(str, files)))
    good = None
    if min_run_em is not None:
        good = frozenset(pair for pair, n in n_runs.items() if counts.n_right[pair] / n > min_run_em)
        if not good:
            raise TraceError(f"no run has an EM above {min_run_em:g}", file=", ".join(map(str, files)))
        n_steps = round(n_steps * sum(n_runs[pair] for pair in good) / n_runs.total())
    return Survey(
        set=name,
        files=tuple(files),
        where=where,
        kind=next(iter(counts.kinds)),
        n_runs=sum(n for pair, n in n_runs.items() if good is None or pair in good),
        n_steps=n_steps,
        longest=counts.longest,
        good_runs=good,
    )


def join_unproposed(batch: Batch, build_proposer: Callable[[], Proposer]) -> Batch:
    """Join each step that is not proposed with the next one; the last step of a run, its end, stays.

    Raise TraceError for runs that are no chains, whose steps nobody probes.
    """
    if batch.kind != "reasoning":
        raise TraceError(f"has {batch.kind}; a probe can be proposed in chains only", file=batch.file)
    keep = np.zeros(len(batch.tokens), dtype=bool)
    for run, (start, end) in enumerate(zip(batch.offset[:-1], batch.offset[1:], strict=True)):
        keep[start:end] = list(map(build_proposer().wants, batch.steps(run)))
    keep[batch.offset[1:] - 1] = True
    kept = np.flatnonzero(keep)
    first = np.concatenate([[0], kept[:-1] + 1])  # where each joined step begins
    steps: dict[str, Any] = {}
    for name in (*STEP_COLUMNS, "answer_code"):
        column = getattr(batch, name)
        steps[name] = column[kept] if isinstance(column, np.ndarray) else [column[at] for at in kept.tolist()]
    for name in ("tokens", "ctx_tokens"):
        steps[name] = np.add.reduceat(getattr(batch, name), first)
    parts = [[text for text in batch.text[a : b + 1] if text is not None] for a, b in zip(first, kept, strict=True)]
    steps["text"] = ["".join(texts) if texts else None for texts in parts]
    return replace(batch, offset=np.concatenate([[0], np.cumsum(keep)])[batch.offset], **steps)


FILES: dict[Kind, str] = {"reasoning": "own_reasoning.jsonl.gz", "samples": "own_samples.jsonl.gz"}


def own_traces(kind: Kind) -> Path:
    """The bundled file of chains (`reasoning`) or votes of 16 (`samples`). Raise ValueError for other kinds."""
    if kind not in FILES:
        raise ValueError(f"own traces: got kind {kind!r}; recorded: {', '.join(FILES)}")
    with as_file(files("suffice") / "data" / FILES[kind]) as path:
        return Path(path)
