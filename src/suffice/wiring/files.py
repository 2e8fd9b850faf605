"""Reads settings: a file (TOML or YAML), the environment over it, and models and questions; locates the log."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from suffice.errors import ConfigError, StoreError
from suffice.extras import how_to_install
from suffice.files import json_object
from suffice.model.artefact import StopModel, load_model
from suffice.model.reading import MOST_BYTES
from suffice.plugins import load_plugins
from suffice.policy.base import POLICIES
from suffice.policy.parameters import parameters_of
from suffice.review.items import format_conversation
from suffice.rollout.assign import question_key
from suffice.settings import DataFile, Driver, FileName, FileUrl, Settings, parse_settings
from suffice.settings.checks import known_names, typed_fields
from suffice.settings.environment import PREFIX, override_settings
from suffice.store.database.location import log_location
from suffice.store.routes.deployments import describe_condition
from suffice.upstream.wire import encode_json
from suffice.wiring.keys import deployment_salt, kill_file, presence_files
from suffice.wiring.last_good import refuse_lost_log

S = TypeVar("S", bound=msgspec.Struct)

MOST_SETTINGS_BYTES: Final = 2**20
MOST_PARTS: Final = 40  # of a dotted key, which costs memory in the square of its parts
# Possessive: linear time.
_LONG_KEY: Final = re.compile(rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{MOST_PARTS}}}""")
SENT_FIELDS: Final[tuple[str, ...]] = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "chat_template_kwargs",
)
MOST_DEEP: Final = 24  # nested tables and lists in which models are looked for: eight policies


DEFAULT_FILE: Final = Path("suffice.toml")
DATA_DIR: Final = "SUFFICE_DATA_DIR"
NO_SETTINGS: Final = """there is no suffice.toml, neither in this folder nor in the data directory. Type one of

    suffice init                                     # asks for your model server and writes one
    suffice serve --upstream http://127.0.0.1:8080   # observes that server, without a file

or name a file with --config"""


class LoadedSettings(NamedTuple):
    settings: Settings
    written: Mapping[str, Any]  # what the file and the environment have; everything else is a default
    variables: Mapping[str, str]  # by path, the environment variable that set it


def load_settings(path: str | Path) -> Settings:
    """Read a settings file with this process's environment over it; see `read_settings`."""
    return read_settings(path, os.environ).settings


def read_settings(path: str | Path, environ: Mapping[str, str]) -> LoadedSettings:
    """Read a settings file, and the environment over it. Raises ConfigError.

    Relative names count from the file's folder (of a link, the link's own); those of files that Suffice writes from
    the data directory, if the environment names one. The environment suffices if there is no suffice.toml.
    """
    file = Path(path)
    is_alone = file == DEFAULT_FILE and not file.exists() and sets_anything(environ)
    if file == DEFAULT_FILE and not file.exists() and not is_alone:
        raise ConfigError(no_settings(environ))
    return _loaded({} if is_alone else _raw_of(file), environ, None if is_alone else file, "the environment")


def no_settings(environ: Mapping[str, str]) -> str:
    """Say that there is no settings file, and what to type; one line where somebody named the data directory."""
    if not environ.get(DATA_DIR):
        return NO_SETTINGS
    folder = data_folder(environ)
    what = "has no suffice.toml, nor has this folder" if folder.is_dir() else "does not exist"
    return f"{folder}: {what}; suffice init --data-dir {folder} writes the settings there, or name a file with --config"


def parse_starter(text: str, environ: Mapping[str, str]) -> Settings:
    """Build the settings that `suffice serve --upstream` runs on without a file. Raises ConfigError."""
    return _loaded(read_toml(text), environ, None, "--upstream").settings


def _loaded(raw: Any, environ: Mapping[str, str], file: Path | None, source: str) -> LoadedSettings:
    """Build settings; `source` names what they came from where there is no file."""
    variables, parent = dict[str, str](), Path() if file is None else file.parent
    if isinstance(raw, Mapping):
        raw, variables = override_settings(raw, environ)
    try:
        load_plugins()
        settings = parse_settings(read_models("", raw, parent))
        folder = parent.resolve()
        data = folder if file is not None and not environ.get(DATA_DIR) else data_folder(environ)
        if (
            not environ.get(DATA_DIR) and data != folder
        ):  # one that somebody named must exist: a wrong name would lose the log
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data != folder and file is not None:
            _refuse_left_log(settings.store.url, folder, data)
        return LoadedSettings(_absolute(settings, folder, data), raw, variables)
    except ConfigError as error:
        place = str(error).partition(":")[0]
        culprits = (name for path, name in variables.items() if f"{place}.".startswith(f"{path}."))
        raise ConfigError(f"{next(culprits, file or source)}: {error}") from None


def sets_anything(environ: Mapping[str, str]) -> bool:
    return any(name.startswith(PREFIX) for name in environ)


def _raw_of(file: Path) -> Any:
    text = _text_of(file)
    try:
        return _read_yaml(text) if file.suffix in (".yaml", ".yml") else read_toml(text)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def data_folder(environ: Mapping[str, str]) -> Path:
    """The data directory that the environment names, else the user's own, by the XDG base directory specification."""
    if environ.get(DATA_DIR):
        return Path(environ[DATA_DIR]).absolute()
    named = Path(environ.get("XDG_DATA_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".local" / "share") / "suffice"


def _refuse_left_log(url: str, folder: Path, data: Path) -> None:
    """Refuse to begin a log in the data directory while the one in use lies beside the settings file."""
    scheme, _, name = url.partition(":///")
    if scheme == "sqlite" and name and (folder / name).is_file() and not (data / name).exists():
        raise ConfigError(
            f"store.url: the data directory {data} has no {name}, but one lies beside the settings file, in {folder};"
            f" move it with its companions ({Path(name).stem}.*), or write its absolute path into store.url"
        )


def _absolute(table: S, folder: Path, data: Path) -> S:
    """Count the names of files in a table, and in those inside it, from a folder, or from the data directory."""
    changed = dict[str, Any]()
    for name, hint in typed_fields(type(table)).items():
        value = getattr(table, name)
        if isinstance(value, msgspec.Struct):
            changed[name] = _absolute(value, folder, data)
        elif isinstance(value, dict):
            changed[name] = {
                key: _absolute(one, folder, data) if isinstance(one, msgspec.Struct) else one
                for key, one in value.items()
            }
        elif hint in (FileName, DataFile) and value and "://" not in value:
            changed[name] = str((folder if hint == FileName else data) / value)
        elif hint == FileUrl:
            scheme, separator, file = value.partition(":///")
            is_file = separator and scheme == "sqlite" and file not in ("", ":memory:")
            changed[name] = f"{scheme}:///{data / file}" if is_file else value
    return msgspec.structs.replace(table, **changed)


def _read_file(file: Path, most_bytes: int, where: str) -> bytes:
    try:
        with file.open("rb") as handle:
            return handle.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # a name may contain a null byte
        raise ConfigError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _text_of(file: Path) -> str:
    content = _read_file(file, MOST_SETTINGS_BYTES, str(file))
    if len(content) > MOST_SETTINGS_BYTES:
        raise ConfigError(f"{file}: is larger than {MOST_SETTINGS_BYTES // 2**20} MiB, which no settings need")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 at byte {error.start}") from None


def read_toml(text: str) -> dict[str, Any]:
    if _LONG_KEY.search(text):
        raise ConfigError(f"is not TOML that Suffice accepts: a dotted key has more than {MOST_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError("is not TOML that Suffice accepts: tables or lists are nested too deeply") from None
    except ValueError as error:  # or a whole number of thousands of digits
        raise ConfigError(f"is not valid TOML: {error}") from None


def read_models(where: str, value: Any, folder: Path, depth: int = MOST_DEEP) -> Any:
    """Replace each learned model that a policy names by file with the file's content, unchecked."""
    if isinstance(value, list) and depth:
        return [read_models(f"{where}[{at}]", one, folder, depth - 1) for at, one in enumerate(value)]
    if not isinstance(value, Mapping) or not depth:
        return value
    name = value.get("policy")
    policy = POLICIES.get(name) if isinstance(name, str) else None
    models = () if policy is None else {one.name for one in parameters_of(policy) if one.type is StopModel}
    read = dict[Any, Any]()
    for key, inner in value.items():
        place = ".".join(filter(None, (where, name if policy is not None else "", str(key))))
        is_file = key in models and isinstance(inner, str)
        read[key] = _read_model(place, folder / inner) if is_file else read_models(place, inner, folder, depth - 1)
    return read


def _read_model(where: str, file: Path) -> dict[str, Any]:
    content = _read_file(file, MOST_BYTES, f"{where}: {file}")
    try:
        plain: dict[str, Any] = msgspec.to_builtins(load_model(content))
        return plain
    except ConfigError as error:
        raise ConfigError(f"{where}: {file}: {error}") from None


def _read_yaml(text: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]  # only for those who write YAML
    except ImportError:
        raise ConfigError(f"YAML needs a package: {how_to_install('yaml')}; or write TOML") from None

    class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # an alias can expand to any amount of text
                raise ConfigError("has an alias (*NAME); write the text itself")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError("is not YAML that Suffice accepts: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # or a number of thousands of digits
        raise ConfigError(f"is not valid YAML: {error}") from None


def load_deployment(file: str | Path) -> Settings:
    settings = load_settings(file)
    require_log(settings, file)
    return settings


def require_log(settings: Settings, file: str | Path) -> None:
    """Raise StoreError if the log does not exist, with its path and the settings file that names it."""
    log, named = log_location(settings.store), Path(file)
    if not isinstance(log, Path):
        return  # whoever connects to it says what is wrong
    try:
        if log.is_file():
            return
        refuse_lost_log(settings)
        what = _instead_of(log)
    except (OSError, ValueError) as error:  # a name that is too long, or invalid
        what = f"cannot be checked ({getattr(error, 'strerror', None) or error})"
    link = f", a link to {named.resolve()}," if named.is_symlink() else ""
    if os.environ.get(DATA_DIR) and log.is_relative_to(data_folder(os.environ)):
        where = f"--data-dir or {DATA_DIR}"
    elif (variable := f"{PREFIX}STORE__URL") in os.environ:
        where = f"{variable} in the environment"
    else:
        where = f"store.url in {named.absolute()}{link}" if named.exists() else "the default of store.url"
    raise StoreError(
        f"store {log}: {what}; {where} names this log, and `suffice serve` creates it on its first run; for another"
        " deployment, name its settings file with --config"
    )


def _instead_of(log: Path) -> str:
    if log.is_dir():
        return "is a folder"
    if log.is_symlink():
        return f"is a link to {log.readlink()}, which points to no file"
    if log.exists():
        return "is not a regular file"
    return "does not exist" if log.parent.is_dir() else f"does not exist, nor does its folder {log.parent}"


def condition(settings: Settings, *, checks: bool = True) -> tuple[str, ...]:
    """Say what is wrong with the deployment: kill switch, log and routes. Raises ConfigError."""
    return describe_condition(
        log_location(settings.store),
        kill_file(settings),
        presence_files(settings),
        routes=settings.routes,
        checks=checks,
    )


def read_route_questions(lines: Iterable[str], where: str) -> list[dict[str, Any]]:
    """Parse JSON lines with `question` or `messages`, and sampling fields. Raise ConfigError with the line."""
    bodies = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = json_object(line, f"{where}:{number}")
        question, messages = item.get("question"), item.get("messages")
        if isinstance(question, str):
            messages = [{"role": "user", "content": question}]
        if not isinstance(messages, list) or not messages:
            raise ConfigError(f'{where}:{number}: has no question; need {{"question": "…"}} or messages')
        bodies.append({"messages": messages, **{k: item[k] for k in SENT_FIELDS if k in item}})
    if not bodies:
        raise ConfigError(f"{where}: contains no questions")
    return bodies


def question_texts(file: Path, settings: Settings) -> Mapping[str, str]:
    """Read the questions of a file, by `Request.question_key`. Raises ConfigError and OSError."""
    salt, entries = deployment_salt(settings), dict[str, str]()
    for body in read_route_questions(file.read_text("utf-8").splitlines(), str(file)):
        text = format_conversation(body["messages"])
        entries[question_key(encode_json(body["messages"]).decode(), salt=salt)] = text  # as in a chat
        entries[question_key(text, salt=salt)] = text  # as in a caller's own loop
    return entries


def questions_file(settings: Settings, route: str) -> Path | None:
    """The file of a route's questions for reviewers, else its judge's. Raises ConfigError for an unknown route."""
    known = settings.routes.get(route)
    if known is None:
        raise ConfigError(f"unknown route {route!r}; {known_names(settings.routes)}")
    named = known.review.questions or ("" if known.judge is None else known.judge.questions)
    return Path(named) if named else None


# The first settings of a newcomer: a server that is observed, at no extra call and no extra token.
ROUTE: Final = "chat"
UPSTREAM: Final = "local"

_STARTER: Final = """\
# Suffice observes: clients get the server's own answers, and no call and no token is added. All settings, with
# their defaults: suffice config show. What each one means: docs/reference/settings.md

{upstream}{key}
[routes.{route}]                       # all chat requests; a `match` table would choose some of them
upstream = "{name}"
kind = "reasoning"                 # one thought that may end early; also "samples" (votes) and "rounds" (loops)
mode = "observe"                   # "enforce" stops runs, once audits have proved that max_em_drop is kept
scorer = "{scorer}"                  # how answers are read and compared: text, number, choice, math, json, ...
{policy}
max_em_drop = 0.02                 # you would accept 2 points of Exact Match ...
confidence = 0.95                  # ... with this confidence

# For "enforce": short extra calls ask for the answer so far, which is what a certificate rests on.
# [routes.{route}.probe]

[server]
host = "127.0.0.1"                 # this machine only; others need keys: suffice key --help
port = 8400

[store]
url = "sqlite:///suffice.db"       # the log; its secrets lie beside it, suffice.salt and suffice.people
"""


_POLICY: Final = (
    'policy = { policy = "stable-answer", streak = 4 }   # would stop once the answer has not changed for 4 steps'
)
_NO_POLICY: Final = """\
# No policy: the model returned no thought, so one call has nothing to stop early. Where you let several answers vote,
# write kind = "samples" and samples = 8: a request is then up to 8 calls, and the vote ends once it is decided."""


def upstream_table(url: str, driver: Driver | None) -> str:
    """Return the table of a server of which no more is known than its driver."""
    return f'[upstreams.{UPSTREAM}]\nurl = {json.dumps(url)}\ndriver = "{driver or "openai"}"\n'


def starter_settings(upstream: str, *, api_key_env: str = "", scorer: str = "text", thinks: bool = True) -> str:
    """Return a complete settings file.

    upstream  the table [upstreams.local], as `upstream_table` or the doctor's recommendation writes it
    thinks    whether the model may return thoughts, which a policy could end
    """
    key = f"api_key_env = {json.dumps(api_key_env)}\n"
    if not api_key_env:
        key = '# api_key_env = "MY_KEY"         # variable with its key; without it each client\'s own is passed on\n'
    policy = _POLICY if thinks else _NO_POLICY
    return _STARTER.format(upstream=upstream, key=key, name=UPSTREAM, route=ROUTE, scorer=scorer, policy=policy)
