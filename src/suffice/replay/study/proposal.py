"""From a policy that replay chose to one that a route runs: its settings, and the model that they name.

What replay calls `{"policy": "learned", "model": "as-good", …}` becomes a policy of the table with a model of
plain data, fitted on all the runs; it decides every step as the replay of that model did.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from suffice.files import whole_file, write_whole
from suffice.learn.export import export_stop_model, export_value_model
from suffice.learn.models import FitResult, Values
from suffice.model.artefact import StopModel, TrainingRecord, dump_model
from suffice.policy.base import build_policy
from suffice.policy.protocol import Policy
from suffice.replay.study.runs import Runs
from suffice.replay.study.scores import (
    HOPELESS_KEY,
    ScoreChoice,
    ScoreTable,
    Spec,
    find_learned,
    find_model_name,
    replace_model,
)
from suffice.signals.classes import Classes

MODEL_FILE: Final = "stop-model.json"
POLICY_FILE: Final = "policy.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyProposal:
    spec: Spec  # what a settings file says: a model is named by its file
    model: StopModel | None  # None: nothing in the policy is learned

    def policy(self) -> Policy:
        return build_policy(replace_model(self.spec, lambda spec: {**spec, "model": self.model}))


def build_proposal(
    spec: Spec | None,
    scores: ScoreTable | None,
    *,
    classes: Classes | None = None,
    left_out: Sequence[int] = (),
) -> PolicyProposal:
    """The live form of what a search chose; None is `never`.

    scores    where the model that the spec names comes from
    classes   what says a query's class, where the spec has a level for each; None: it has none
    left_out  folds whose runs the model must not have seen; (): it is fitted on everything

    Raises ConfigError when scikit-learn is not installed.
    """
    name = None if spec is None else find_model_name(spec)
    if spec is None or name is None:
        return PolicyProposal(spec=spec or {"policy": "never"}, model=None)
    assert scores is not None, "a spec names a model where there are scores"
    model, learned = _export_model(scores, scores.names[name], tuple(left_out)), find_learned(spec)
    if classes is not None and "classes" in learned:
        known = {rule.name for rule in classes.rules}
        levels = tuple((name, level) for name, level in learned["classes"].items() if name in known)
        model = replace(model, classes=levels, found=classes.plain())
    # A route names its model, levels by class included, by a file.
    written = {key: value for key, value in learned.items() if key != "classes"} | {"model": MODEL_FILE}
    return PolicyProposal(spec=replace_model(spec, lambda _: written), model=model)


def write_proposal(
    proposal: PolicyProposal, folder: Path, *, route: str, settings: Mapping[str, Any], head: str
) -> list[Path]:
    """Write the files of a proposal and give their paths. Raises OSError as the system does.

    route     name of the route in the fragment
    settings  further keys of the route, such as its kind. Any: each has its own type
    head      comment at the top of the fragment
    """
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
    """The runs' address: equal runs in the same order, equal digests."""
    parts = hashlib.blake2b(digest_size=12)
    parts.update(json.dumps([runs.set, runs.kind, runs.question]).encode("utf-8", "surrogatepass"))
    for column in (runs.starts, runs.cost, runs.ok, runs.full_ok):
        parts.update(column.tobytes())
    return parts.hexdigest()


def format_toml(value: Any) -> str:
    """A value on one line of TOML. Raises ValueError for what settings never hold."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {format_toml(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(format_toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)  # a basic string of TOML reads JSON's escapes
    raise ValueError(f"toml: got {type(value).__name__}; a table, a list, a number, a text, true or false")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _export_model(scores: ScoreTable, choice: ScoreChoice, left_out: tuple[int, ...]) -> StopModel:
    score, runs, kept = choice.score, scores.runs, scores.kept(left_out)
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
        return export_value_model(scores.chosen, fitted, choice.price, hopeless, trained=trained)
    return export_stop_model(scores.chosen, fitted, hopeless, trained=trained, cost=scores.cost(score))
