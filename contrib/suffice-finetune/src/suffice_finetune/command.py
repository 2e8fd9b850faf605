"""`suffice export finetune`: training lines for a language model, from runs cut at their stop."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from suffice import __version__
from suffice.cli.shell import FILE, JSON_OBJECT, Command, find_settings, option, read_policy
from suffice.control.evidence.versions import read_back
from suffice.edge.math import open_match
from suffice.errors import ConfigError
from suffice.files import write_whole
from suffice.policy.base import build_policy, version_of
from suffice.policy.folded_version import prompt_fold
from suffice.settings import Route, Settings
from suffice.store.database.decisions import Decisions, read_artefact
from suffice.store.database.location import LogLocation, log_location
from suffice.store.database.views import open_reader, read_episodes
from suffice.store.routes.deployments import RouteDeployment, read_decided
from suffice.wiring.audit import note_export
from suffice.wiring.files import load_settings, require_log
from suffice_finetune.cuts import ANSWER, Consent, StoppingPolicy, Terms, cut_log, cut_traces, read_consent, read_texts
from suffice_finetune.pairs import CutRun, Line, LineFormat, TrainingPairs, make_pairs

SETTINGS = Path("suffice.toml")
TRAIN, VAL, MANIFEST = "train.jsonl", "val.jsonl", "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneOptions:
    config: Path | None
    db: Path | None
    route: str | None
    texts: tuple[Path, ...]
    policy: str | None
    where: str | None
    consent: tuple[Path, ...]
    consented: bool
    uncertified: bool
    estimate_cuts: bool
    format: Literal["supervised", "preference"]
    thought_as: Literal["tags", "field"]
    think_open: str | None
    think_close: str | None
    answer: str
    val_share: float
    out: Path
    as_json: bool


@click.command("finetune", cls=Command)
@click.argument("traces", nargs=-1, type=FILE)
@option("--config", type=FILE, metavar="FILE", help="Settings, TOML or YAML. [default: suffice.toml, if it is there]")
@option("--db", type=FILE, help="Read this event log. [default: the settings']")
@option("--route", help="Whose runs, or whose policy. [default: the only route of kind reasoning]")
@option("--texts", multiple=True, type=FILE, help="Texts of the log's runs; repeatable.")
@option("--policy", help="Cut traces by this policy: JSON, or a name alone. [default: what is in force]")
@option("--where", help="Take only some traces: 'task=math,model=qwen*'.")
@option("--consent", multiple=True, type=FILE, help="Ids that agreed; repeatable.")
@option("--consented", is_flag=True, help="You say that everybody agreed who did not refuse.")
@option("--uncertified", is_flag=True, help="Also stops that nothing vouched for; their lines say so.")
@option("--estimate-cuts", is_flag=True, help="Also cuts estimated from token counts; their lines say so.")
@option(
    "--format",
    type=click.Choice(["supervised", "preference"]),
    default="supervised",
    help="Lines to learn from, or pairs of a kept and a rejected one.",
)
@option(
    "--thought-as",
    type=click.Choice(["tags", "field"]),
    default="tags",
    help="The thought inside the content, or as reasoning_content.",
)
@option("--think-open", help="Before a thought. [default: the upstream's tag, else <think>, and a line end]")
@option("--think-close", help="Behind a thought. [default: likewise]")
@option("--answer", default="{answer}", help="Words around an answer known in short alone.")
@option("--val-share", type=click.FloatRange(0, 0.5), default=0.1, help="Of prompts.")
@option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("finetune"),
    metavar="FOLDER",
    help="Where train.jsonl, val.jsonl and manifest.json go.",
)
@JSON_OBJECT
def finetune(traces: tuple[Path, ...], **options: Any) -> None:
    """Write training lines for a language model from runs cut at their stop, so that its answers survive stopping.

    From TRACES of `suffice record`, or from an event log with the owner's --texts. Uses only runs with consent, puts
    each prompt on one side of the split, and writes no duplicates. Exits with 2 when nothing can be written.
    """
    given = FinetuneOptions(**options)
    pairs, shape = _pairs(traces, given)
    manifest = _write(pairs, shape, traces, given)
    if given.texts:
        _note(given, n_rows=len(pairs.train) + len(pairs.val))
    if given.as_json:
        click.echo(json.dumps({**manifest, "out": str(given.out)}))
    else:
        _show(manifest, given)


def _pairs(traces: tuple[Path, ...], given: FinetuneOptions) -> tuple[TrainingPairs, LineFormat]:
    if not traces and not given.texts:
        raise ConfigError("needs recorded TRACES, or --texts for the runs of the log: the log itself holds no text")
    if ANSWER not in given.answer:
        raise ConfigError(f"--answer: must hold {ANSWER}")
    listed: dict[str, bool] = {}
    for path in given.consent:
        listed |= read_consent(path)
    terms = Terms(
        consent=Consent(everybody=given.consented, listed=listed),
        uncertified=given.uncertified,
        estimate_cuts=given.estimate_cuts,
        answer=given.answer,
    )
    settings = _settings(given)
    left_out, shape = Counter[str](), _shape(settings, given)
    pairs = make_pairs(_cuts(traces, settings, terms, given, left_out), shape)
    pairs.left_out.update(left_out)
    if not pairs.train and not pairs.val:
        raise ConfigError(f"no run can be used: {_reasons(pairs) or 'there is none'}{_hint(pairs)}")
    return pairs, shape


def _cuts(
    traces: tuple[Path, ...], settings: Settings | None, terms: Terms, given: FinetuneOptions, left_out: Counter[str]
) -> Iterator[CutRun]:
    if traces:
        yield from cut_traces(traces, _chooses(settings, given), terms, where=given.where, left_out=left_out)
    if given.texts:
        texts = read_texts(given.texts)
        with _match(settings, given) as (route, match):
            episodes = read_episodes(_database(settings, given), route)
            yield from cut_log(episodes, texts, terms, match=match, left_out=left_out)


def _settings(given: FinetuneOptions) -> Settings | None:
    if given.config is not None:
        return load_settings(given.config)
    return load_settings(SETTINGS) if SETTINGS.is_file() and (given.policy is None or given.texts) else None


def _route(settings: Settings, given: FinetuneOptions) -> tuple[str, Route]:
    if given.route is not None:
        return given.route, find_settings(settings, given.route, option="--route")
    entries = {name: route for name, route in settings.routes.items() if route.kind == "reasoning"}
    if len(entries) != 1:
        raise ConfigError(f"--route: name one; of kind reasoning are: {', '.join(sorted(entries)) or 'none'}")
    return next(iter(entries.items()))


def _shape(settings: Settings | None, given: FinetuneOptions) -> LineFormat:
    upstream = None
    if settings is not None:
        upstream = settings.upstreams.get(_route(settings, given)[1].upstream)
    opened, closed = ("<think>", "</think>") if upstream is None else (upstream.think_open, upstream.think_close)
    return LineFormat(
        format=given.format,
        thought_as=given.thought_as,
        val_share=given.val_share,
        think_open=f"{opened}\n" if given.think_open is None else given.think_open,
        think_close=f"\n{closed}\n\n" if given.think_close is None else given.think_close,
    )


def _database(settings: Settings | None, given: FinetuneOptions) -> LogLocation:
    if given.db is not None:
        return given.db
    if settings is None:
        raise ConfigError("no suffice.toml in this folder; name a file with --config, or a log with --db")
    require_log(settings, given.config or SETTINGS)
    return log_location(settings.store)


@contextlib.contextmanager
def _match(
    settings: Settings | None, given: FinetuneOptions
) -> Iterator[tuple[str | None, Callable[[str | None, str], bool]]]:
    if settings is None:
        yield given.route, lambda answer, gold: answer == gold
        return
    name, route = _route(settings, given)
    with open_match(route) as match:
        yield name, match


# --------------------------------------------------------------------------- what cuts a recorded trace


def _chooses(settings: Settings | None, given: FinetuneOptions) -> Callable[[str], StoppingPolicy]:
    spec: Mapping[str, Any] | None = None
    if given.policy is not None:
        spec = read_policy(given.policy)
    elif settings is None:
        raise ConfigError("what is to cut the traces? Name a --policy, or settings with --config and --route")
    else:
        name, route = _route(settings, given)
        certified = _in_force(settings, name, given)
        if certified is not None:
            return certified
        spec = route.policy
    policy = build_policy(spec or {"policy": "never"})
    acting = StoppingPolicy(policy, version_of(policy), None, None)
    return lambda _: acting


def _in_force(settings: Settings, name: str, given: FinetuneOptions) -> Callable[[str], StoppingPolicy] | None:
    """Return the certified level of a route's active version; None: there is none."""
    path = _database(settings, given)
    held = read_decided(path).of(name) if path.exists() else None
    if held is None or held.publication is None or held.level < 1:
        return None
    version, level = _version(path, held), held.level
    models = frozenset(asked for asked, _, _ in held.publication.upstream)
    made: dict[int, StoppingPolicy] = {}

    def chooses(key: str) -> StoppingPolicy:
        fold = prompt_fold(key, len(version.models))
        if fold not in made:
            made[fold] = StoppingPolicy(build_policy(version.policy(key, level)), version.address, level, models)
        return made[fold]

    return chooses


def _version(path: LogLocation, held: RouteDeployment) -> Any:
    assert held.publication is not None
    with open_reader(path) as connection:
        body = read_artefact(connection, held.publication.fit)
    return read_back(held.publication.fit, body).version


# --------------------------------------------------------------------------- what is written and shown


def _write(pairs: TrainingPairs, shape: LineFormat, traces: tuple[Path, ...], given: FinetuneOptions) -> dict[str, Any]:
    """Write each file whole or not at all, the manifest last: it lists what belongs together."""
    for name, lines in ((TRAIN, pairs.train), (VAL, pairs.val)):
        write_whole(given.out / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    lines = [*pairs.train, *pairs.val]
    manifest = {
        "suffice": __version__,
        "shape": asdict(shape),
        "n_train": len(pairs.train),
        "n_val": len(pairs.val),
        "n_prompts": len({line["prompt_group"] for line in lines}),
        "cuts": _count(line["cut"] for line in lines),
        "stops": _count(_stop_name(line) for line in lines),
        "n_uncertified": sum(not line["stop"]["certified"] for line in lines),
        "n_estimated": sum(not line["stop"]["exact"] for line in lines),
        "left_out": dict(sorted(pairs.left_out.items())),
        "consent": _consent(given),
        "sources": {path.name: _sha256(path) for path in (*traces, *given.texts, *given.consent)},
        "files": {name: _sha256(given.out / name) for name in (TRAIN, VAL)},
    }
    write_whole(given.out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _note(given: FinetuneOptions, *, n_rows: int) -> None:
    path = _database(_settings(given), given)
    with Decisions(path, now=time.time, monotonic_s=time.monotonic, create=False) as writer:
        note_export(writer, what="training lines", where=str(given.out), n_rows=n_rows, author=None, reason="")


def _stop_name(line: Line) -> str:
    stop = line["stop"]
    return stop["policy_version"] if stop["level"] is None else f"{stop['policy_version']}@{stop['level']}"


def _consent(given: FinetuneOptions) -> str:
    sentences = ["lines that say so"]
    if given.consent:
        sentences.append(f"{len(given.consent)} lists")
    if given.consented:
        sentences.append("the owner's word for everybody who did not refuse")
    return ", ".join(sentences)


def _count(words: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reasons(pairs: TrainingPairs) -> str:
    return "; ".join(f"{n:,} {why}" for why, n in pairs.left_out.most_common())


def _hint(pairs: TrainingPairs) -> str:
    hints = {
        "no consent": "; list ids that agreed with --consent, or say --consented if all did",
        "stopped by what was not certified": "; --uncertified takes them all the same",
    }
    why, _ = pairs.left_out.most_common(1)[0] if pairs.left_out else ("", 0)
    return hints.get(why, "")


def _show(manifest: Mapping[str, Any], given: FinetuneOptions) -> None:
    cuts = ", ".join(f"{n:,} {what}" for what, n in manifest["cuts"].items())
    click.echo(f"{given.out / TRAIN}: {manifest['n_train']:,} lines; {given.out / VAL}: {manifest['n_val']:,} lines")
    click.echo(f"{manifest['n_prompts']:,} prompts; cuts: {cuts}")
    for what, n in manifest["stops"].items():
        click.echo(f"  stopped by {what}: {n:,}")
    if manifest["n_uncertified"]:
        click.echo(f"  of them not certified: {manifest['n_uncertified']:,}")
    if manifest["n_estimated"]:
        click.echo(f"  of them cut at an estimated place: {manifest['n_estimated']:,}")
    for why, n in manifest["left_out"].items():
        click.echo(f"  left out: {n:,} {why}")
