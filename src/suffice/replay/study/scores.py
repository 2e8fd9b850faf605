"""Learned scores over recorded runs, cross-fitted: no question is scored by a model that was fitted on it.

A trial names its model by a word, `{"policy": "learned", "model": "as-good", "threshold": 0.01}`. In replay the word
selects a column of scores; `build_proposal` replaces it by the model itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.arrays import Bools, Floats, Ints
from suffice.errors import ConfigError, TraceError
from suffice.files import whole_file, write_whole
from suffice.learn.features import FeatureSelection, choose_features
from suffice.learn.models import (
    MAX_VALUE_ROWS,
    PRICES,
    Examples,
    FitResult,
    Parts,
    Target,
    Trajectories,
    Values,
    export_advantage,
    export_fit,
    export_stop_model,
    fit,
    fit_values,
)
from suffice.model.artefact import StepCost, StopModel, TrainingRecord, dump_model
from suffice.policy.base import build_policy
from suffice.policy.columns import CONTINUE, HOPELESS, SUFFICES, Columns, Stops, known_column
from suffice.policy.protocol import Policy, go_on
from suffice.replay.study.runs import RowScores, Runs, select_runs
from suffice.replay.study.sums import folds_of
from suffice.signals.features import Classes, FeatureSet
from suffice.types import Decision, Signals

Spec = Mapping[str, Any]  # an argument of `build_policy` whose model is a word


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    name: str
    target: Target | Literal["value"]
    cost: float = 0.0  # exponent of the tokens per step: accept more risk where a stop saves more
    parts: Parts = "ensemble"
    query_signals: bool = True

    @property
    def key(self) -> Key:
        return self.target, self.parts


# The proposed scores. Stopping a costly run saves more than stopping a cheap one, so the risk that is
# compared with a level is divided by a power of the run's cost per step; 0 is the plain probability.
SCORES: tuple[Score, ...] = (
    Score(name="as-good", target="as-good"),
    Score(name="as-good, by cost", target="as-good", cost=0.5),
    Score(name="value", target="value"),
)

WITHOUT_SCORES: Final = "fixed-rounds,stable-answer"  # policies for every kind of run, without learning
Key = tuple[Target | Literal["value"], Parts]
HOPELESS_KEY: Final[Key] = ("hopeless", "linear")
Model = FitResult | Values


def features_of(runs: Runs, chosen: FeatureSelection) -> Floats:
    """Features of all rows, shape (T, P), rounded to ten digits.

    Live, signals are computed one by one and differ in the last digits; a tree must not split between such values.
    """
    return np.round(FeatureSet(chosen.names).matrix(runs.columns, runs.queries), 10)


def good_rows(runs: Runs, target: Target) -> Bools:
    if target == "suffices":
        return runs.same | runs.ok
    full_failed = ~runs.full_ok[runs.run_of_row]
    return full_failed if target == "hopeless" else full_failed | runs.ok


def thin_runs(kept: Bools, runs: Runs) -> Bools:
    """A regular subset of these runs, at most as many as the value model takes."""
    places = np.flatnonzero(kept)
    thin = np.zeros_like(kept)
    thin[places[:: max(1, -(-int(runs.n_steps[places].sum()) // MAX_VALUE_ROWS))]] = True
    return thin


def score_rows(model: Model, x: Floats) -> RowScores:
    """P(good) of each row, shape (R,), or for the value model the bits of the prices at which it would stop."""
    return model.stopping_prices(x) if isinstance(model, Values) else model.scores(x)


class ScoredRows(NamedTuple):
    """The risk of stopping and the reason of a stop, shape (T,) each."""

    risk: RowScores
    codes: NDArray[np.int8]

    def select(self, rows: Bools) -> ScoredRows:
        return ScoredRows(self.risk[rows], self.codes[rows])


def risk_and_codes(score: Score, p: RowScores, p_hopeless: Floats, runs: Runs) -> ScoredRows:
    """The risk of stopping at each row, and why.

    The risk is P(not good) over a power of the run's cost per step, or the value model's price bits. Rows without an
    answer never stop, unless the run is hopeless.
    """
    lost = (p_hopeless >= 0.5) & (score.target != "suffices")
    codes = np.where(lost, np.int8(HOPELESS), np.int8(SUFFICES))
    silent = np.isnan(runs.columns.answer) & ~lost
    if p.dtype == np.uint64:
        return ScoredRows(np.where(silent, np.uint64(0), p), codes)
    risk = 1 - p
    if score.cost:
        risk = risk / runs.per_step**score.cost
    risk[silent] = np.nan
    return ScoredRows(risk, codes)


class CrossFit:
    """Cross-fitted scores: the model of a row has not seen the row's question.

    `scores(key, v)` returns scores that outer fold v may use: rows of fold v come from the model fitted on all other
    folds, rows of another fold u from the model fitted without u and v. Neither models nor points picked on the other
    rows have seen fold v. Without v, each row comes from the model fitted without its own fold.
    """

    def __init__(
        self, runs: Runs, *, seed: int, query_signals: bool = True, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.runs = runs
        self.seed = seed
        self.fold = folds_of(runs)
        self.chosen = choose_features(runs.kind, runs.queries, query_signals=query_signals)
        self.x = features_of(runs, self.chosen)
        self.example = np.delete(np.arange(len(runs.cost)), runs.last)  # the last step of a run is no example
        self.row_fold = self.fold[runs.run_of_row]
        self._tick = tick
        self._models: dict[tuple[Key, frozenset[int]], Model] = {}
        self._scores: dict[tuple[Key, frozenset[int], int], RowScores] = {}

    def model(self, key: Key, left_out: Sequence[int] = ()) -> Model:
        """Fit without some folds. Raise TraceError if no run has two steps, ConfigError without scikit-learn."""
        place = (key, frozenset(left_out))
        if place not in self._models:
            self._models[place] = self._fit(key, left_out)
            self._tick()
        return self._models[place]

    def _fit(self, key: Key, left_out: Sequence[int]) -> Model:
        (target, parts) = key
        runs = self.runs
        kept = self.kept(left_out)
        rows = self.example[kept[runs.run_of_row[self.example]]]
        if not len(rows):
            n = int((runs.n_steps > 1).sum())
            raise TraceError(
                f"runs of two steps or more: {n}, on too few questions to learn a score on some and judge it on others;"
                f" record more, or leave learned scores out: --policies {WITHOUT_SCORES}",
                file=runs.set,
            )
        if target == "value":
            kept = thin_runs(kept, runs)
            those, x = select_runs(runs, kept), self.x[kept[runs.run_of_row]]
            return fit_values(Trajectories(x=x, starts=those.starts, ok=those.ok, tokens=those.cost))
        examples = Examples(self.x[rows], good_rows(runs, target)[rows])
        return fit(examples, self.chosen, parts=parts, seed=self.seed)

    def kept(self, left_out: Sequence[int]) -> Bools:
        return ~np.isin(self.fold, list(left_out))

    def scores(self, key: Key, v: int | None) -> RowScores:
        """The score of every row, shape (T,), as outer fold `v` may use it; None: without an outer fold."""
        joined = np.empty(len(self.row_fold), dtype=np.uint64 if key[0] == "value" else np.float64)
        for u, rows, left_out in self.folds(v):
            place = (key, frozenset(left_out), u)
            if place not in self._scores:
                self._scores[place] = score_rows(self.model(key, left_out), self.x[rows])
            joined[rows] = self._scores[place]
        return joined

    def folds(self, v: int | None) -> Iterator[tuple[int, Ints, tuple[int, ...]]]:
        """Each fold with its rows, and the folds that their model must not have seen under outer fold `v`."""
        for u in np.unique(self.fold).tolist():
            yield u, np.flatnonzero(self.row_fold == u), (u,) if v is None else (u, v)


# ---- policies of a search

PRICED: Final = " at price "  # part of the name of a value model
CLASS_COLUMN: Final = "class"  # index of the run's class; NaN: none, or too small
EVEN: Final = 0.5  # the threshold of a value model: the sigmoid of a zero advantage


@dataclass(frozen=True, slots=True)
class ScoredPolicy:
    """The policy `learned` over precomputed scores; see `policy.learned` for its meaning."""

    name: ClassVar[str] = "scored"
    needs: ClassVar[tuple[str, ...]] = ()
    score: str  # selects the columns of the risk and of lost runs
    threshold: float
    on_hopeless: str = "continue"
    classes: tuple[float, ...] = ()  # thresholds by class; (): `threshold` for all

    def decide(self, s: Signals) -> Decision:
        """Continue, because a single step has no columns."""
        return go_on(f"step {s.step}: the score {self.score!r} exists only in columns")

    def stops(self, columns: Columns) -> Stops:
        lost = known_column(columns, lost_column(self.score)) > 0
        answered = ~np.isnan(known_column(columns, "answer"))
        may = np.where(lost, self.on_hopeless == "stop", answered)
        threshold: Floats | float = self.threshold
        if self.classes:
            of_class = known_column(columns, CLASS_COLUMN)
            place = np.where(np.isnan(of_class), len(self.classes), of_class).astype(np.int64)
            threshold = np.array([*self.classes, self.threshold])[place]
        passed = may & (known_column(columns, risk_column(self.score)) <= threshold)
        return np.where(passed, np.where(lost, np.int8(HOPELESS), np.int8(SUFFICES)), np.int8(CONTINUE))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreChoice:
    score: Score
    price: int = -1  # for target "value": index of the price; otherwise -1


def names_of(scores: Sequence[Score]) -> dict[str, ScoreChoice]:
    choices: dict[str, ScoreChoice] = {}
    for score in scores:
        if score.target != "value":
            choices[score.name] = ScoreChoice(score=score)
            continue
        for at, price in enumerate(PRICES.tolist()):
            choices[f"{score.name}{PRICED}{price:.3g}"] = ScoreChoice(score=score, price=at)
    return choices


def risk_column(score: str) -> str:
    """The column of a score's risk; NaN: never stop."""
    return f"risk: {score}"


def lost_column(score: str) -> str:
    return f"lost: {score}"


class ScoreTable(CrossFit):
    def __init__(
        self, runs: Runs, scores: Sequence[Score], *, seed: int, tick: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(runs, seed=seed, tick=tick)
        self.names: Mapping[str, ScoreChoice] = names_of(scores)
        columns = runs.readable()
        self._informed: Bools = FeatureSet(self.chosen.names).informed_rows(columns, runs.queries, columns.run)

    def cost(self, score: Score) -> StepCost:
        """The divisor of the risk, which is 1 at the median run."""
        if not score.cost:
            return StepCost()
        return StepCost(score.cost, float(np.median(self.runs.per_step[self.runs.last])) ** score.cost)

    def columns(self, name: str, v: int | None) -> dict[str, Floats]:
        choice = self.names[name]
        if choice.price >= 0:
            risk = self._advantage_risk(choice, v)
        else:
            risk = (1.0 - self.scores(choice.score.key, v)) / self.cost(choice.score).of_many(self.runs.per_step)
        risk[~self._informed] = np.nan
        lost = np.zeros(len(risk))
        if choice.score.target != "suffices":
            lost = (self.scores(HOPELESS_KEY, v) >= 0.5).astype(np.float64)
        return {risk_column(name): risk, lost_column(name): lost}

    def _advantage_risk(self, choice: ScoreChoice, v: int | None) -> Floats:
        """1 minus the sigmoid of Q(stop) - Q(continue): one half where both are worth the same."""
        risk = np.empty(len(self.row_fold))
        for _, rows, left_out in self.folds(v):
            values = self.model(choice.score.key, left_out)
            assert isinstance(values, Values)
            risk[rows] = 1.0 - export_advantage(values, choice.price).scores(self.x[rows])
        return risk


# ---- specs whose model is a word


def inner_specs(spec: Spec) -> Sequence[Spec]:
    inside: Sequence[Spec] = [spec["inner"]] if "inner" in spec else spec.get("policies", ())
    return inside


def find_learned(spec: Spec) -> Spec:
    if spec.get("policy") == "learned":
        return spec
    return next((learned for learned in map(find_learned, inner_specs(spec)) if learned), {})


def find_model_name(spec: Spec) -> str | None:
    learned = find_learned(spec)
    return str(learned["model"]) if learned else None


def replace_model(spec: Spec, make: Callable[[Spec], Any]) -> Any:
    """The spec with `make` applied to each `learned` policy, at any depth."""
    if spec.get("policy") == "learned":
        return make(spec)
    remade = dict(spec)
    if "inner" in remade:
        remade["inner"] = replace_model(remade["inner"], make)
    if "policies" in remade:
        remade["policies"] = [replace_model(one, make) for one in remade["policies"]]
    return remade


def title_of(spec: Spec | None) -> str:
    if spec is None:
        return "never"
    name = str(spec["policy"])
    if name == "learned":
        by_class = ", by class" if "classes" in spec else ""
        return f"learned ({str(spec['model']).partition(PRICED)[0]}{by_class})"
    inner = inner_specs(spec)
    return f"{name}({', '.join(map(title_of, inner))})" if inner else name


def n_parts(spec: Spec) -> int:
    return 1 + ("classes" in spec) + sum(map(n_parts, inner_specs(spec)))


def build_scored(spec: Spec, names: Mapping[str, ScoreChoice], classes: Sequence[str] = ()) -> Policy:
    """Build a policy whose model is a word. Raise ConfigError as `build_policy` does, and for an unknown score."""

    def make(learned: Spec) -> ScoredPolicy:
        given = {key: value for key, value in learned.items() if key not in ("policy", "model", "classes")}
        if own := learned.get("classes"):  # classes of another search have no level here
            given["classes"] = tuple(own.get(name, learned["threshold"]) for name in classes)
        if learned["model"] not in names:
            raise ConfigError(f"policy.learned.model: got {learned['model']!r:.60}; known: {', '.join(names)}")
        return ScoredPolicy(score=str(learned["model"]), **given)

    built = replace_model(spec, make)
    return built if isinstance(built, ScoredPolicy) else build_policy(built)


# ---- from replay to a route

MODEL_FILE: Final = "stop-model.json"
POLICY_FILE: Final = "policy.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyProposal:
    spec: Spec  # for a settings file: the model is a file name
    model: StopModel | None  # None: no part is learned

    def policy(self) -> Policy:
        return build_policy(replace_model(self.spec, lambda spec: {**spec, "model": self.model}))


def build_proposal(
    spec: Spec | None, scores: ScoreTable | None, *, classes: Classes | None = None, left_out: Sequence[int] = ()
) -> PolicyProposal:
    """The live form of a search's winner; a spec of None becomes `never`. Raise ConfigError without scikit-learn.

    scores    supplies the model that the spec names
    left_out  folds that the model must not be fitted on
    """
    name = None if spec is None else find_model_name(spec)
    if spec is None or name is None:
        return PolicyProposal(spec=spec or {"policy": "never"}, model=None)
    assert scores is not None, "a spec names a model where there are scores"
    model, learned = _export_model(scores, scores.names[name], tuple(left_out)), find_learned(spec)
    if classes is not None and "classes" in learned:
        levels = tuple((name, level) for name, level in learned["classes"].items() if name in classes.names)
        model = msgspec.structs.replace(model, classes=levels, class_rules=classes.rules)
    # A route names its model, including levels by class, by file.
    written = {key: value for key, value in learned.items() if key != "classes"} | {"model": MODEL_FILE}
    return PolicyProposal(spec=replace_model(spec, lambda _: written), model=model)


def write_proposal(
    proposal: PolicyProposal, folder: Path, *, route: str, settings: Mapping[str, Any], head: str
) -> list[Path]:
    """Write the files of a proposal; the settings fragment starts with the comment `head`. Raise OSError."""
    written = []
    if proposal.model is not None:
        with whole_file(folder / MODEL_FILE) as part:
            part.write_bytes(dump_model(proposal.model))
        written.append(folder / MODEL_FILE)
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    lines += ["", f"[routes.{_key(route)}]"]
    lines += [f"{_key(key)} = {format_toml(value)}" for key, value in {**settings, "policy": proposal.spec}.items()]
    write_whole(folder / POLICY_FILE, "\n".join(lines) + "\n")
    return [*written, folder / POLICY_FILE]


def digest_of(runs: Runs) -> str:
    """The content digest of the runs; it depends on their order."""
    parts = hashlib.blake2b(digest_size=12)
    parts.update(json.dumps([runs.set, runs.kind, runs.question]).encode("utf-8", "surrogatepass"))
    for column in (runs.starts, runs.cost, runs.ok, runs.full_ok):
        parts.update(column.tobytes())
    return parts.hexdigest()


def format_toml(value: Any) -> str:
    """A value on one line of TOML. Raise ValueError for types that settings never contain."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {format_toml(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(format_toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)  # TOML's basic strings accept JSON's escapes
    raise ValueError(f"toml: got {type(value).__name__}; a table, a list, a number, a text, true or false")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _export_model(scores: ScoreTable, choice: ScoreChoice, left_out: tuple[int, ...]) -> StopModel:
    score = choice.score
    runs = scores.runs
    kept = scores.kept(left_out)
    fitted = scores.model(score.key, left_out)
    hopeless = scores.model(HOPELESS_KEY, left_out) if score.target != "suffices" else None
    assert hopeless is None or isinstance(hopeless, FitResult), "this target is a probability"
    trained = TrainingRecord(
        n_episodes=int(kept.sum()),
        n_questions=len({question for question, here in zip(runs.question, kept, strict=True) if here}),
        digest=f"{runs.set} {digest_of(runs)}"[:2_000],
        target=score.target,
        seed=scores.seed,
    )
    if isinstance(fitted, Values):
        ensemble = export_advantage(fitted, choice.price)
    else:
        ensemble = export_fit(fitted, scores.chosen)
    return export_stop_model(scores.chosen, ensemble, hopeless, trained=trained, cost=scores.cost(score))
