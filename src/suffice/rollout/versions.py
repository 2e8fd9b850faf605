"""Versions: immutable policies and models with an address, a signature and a lineage, and how two of them differ.

A sealed version is one line with address and signature, then canonical JSON: nothing is parsed before its signature is
verified. A refused version gives one sentence, and the caller keeps the version that it has.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, get_args

from msgspec import Struct

from suffice.errors import ConfigError
from suffice.model.artefact import canonical
from suffice.model.reading import (
    MOST,
    MOST_BYTES,
    MOST_CHARS,
    MOST_ITEMS,
    Text,
    convert,
    describe_value,
    exact_float,
    parse_json,
)
from suffice.policy.base import build_policy
from suffice.policy.folded_version import load_version
from suffice.signals.base import FoldSpec, resolve_needs
from suffice.types import Kind

Form: TypeAlias = Literal[
    "policy",  # {"policy": name, **parameters}, as `policy.base.build_policy` takes it
    "learned",  # models with their levels, as `policy.folded_version.FoldedVersion.plain` writes them
]

SCHEMA: Final = 1
MOST_DEPTH: Final = 64
ADDRESS: Final = re.compile(r"pv-[0-9a-f]{32}")
_MARK: Final = b"suffice-version/1"
_FIRST_LINE: Final = re.compile(rb"suffice-version/1 (pv-[0-9a-f]{32}) ([0-9a-f]{64})")
_LOOKS: Final = (
    (b"\x80", "a pickle, which runs code when it is read"),
    (b"PK", "a zip archive or an npz"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x1f\x8b", "something compressed (gzip)"),
    (b"BZh", "something compressed (bzip2)"),
    (b"\xfd7zXZ", "something compressed (xz)"),
    (b"\x28\xb5\x2f\xfd", "something compressed (zstd)"),
    (b"{", "JSON without the line that signs it"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLineage:
    parent: str | None  # address of the version that it replaces; None: the first
    proposed_by: str  # a job or a person
    why: str  # a sentence
    since_seq: int | None = None  # first row of the log that it was learned from; None: not learned
    to_seq: int | None = None  # last row
    proposed_s: float | None = None  # Unix time; informative


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A deployable policy or set of models. Equal content has an equal address.

    form          what the body is
    body          plain data; frozen, `plain` gives a mutable copy
    kind, scorer  of the routes that it may serve
    model_family  of the upstream that it was learned on; None: a rule that holds for any
    report_card   plain data: its evaluation before it serves
    signals       what its body reads
    address       `pv-` and 32 hexadecimal digits of all of this

    Raises ConfigError with the place of the error: a number that is not finite or out of range, a wrong shape, an
    unknown policy or signal, or too large a body.
    """

    form: Form
    body: Mapping[str, Any] = field(compare=False)
    kind: Kind = field(compare=False)
    scorer: str = field(compare=False)
    model_family: str | None = field(compare=False)
    lineage: VersionLineage = field(compare=False)
    report_card: Mapping[str, Any] = field(default_factory=dict, compare=False)
    signals: tuple[FoldSpec, ...] = field(init=False, compare=False)
    address: str = field(init=False)

    def __post_init__(self) -> None:
        _check_words(self)
        for name in ("body", "report_card"):
            _check_plain(f"version.{name}", getattr(self, name), MOST_DEPTH)
        object.__setattr__(self, "signals", _signals_of(self.form, self.body))
        for name in ("body", "report_card"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        content = canonical(self.plain())
        if len(content) > MOST_BYTES:
            raise ConfigError(f"version: got {len(content):,} bytes; at most {MOST_BYTES:,}")
        object.__setattr__(self, "address", _address_of(content))

    def plain(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "form": self.form,
            "body": _thawed(self.body),
            "kind": self.kind,
            "scorer": self.scorer,
            "model_family": self.model_family,
            "lineage": asdict(self.lineage),
            "signals": [_plain_signal(one) for one in self.signals],
            "report_card": _thawed(self.report_card),
        }


# --------------------------------------------------------------------------- bytes


def seal_version(version: Version, *, secret: str) -> bytes:
    """Serialise a version: a line with address and HMAC-SHA256 under the (non-empty) secret, then canonical JSON."""
    content = canonical(version.plain())
    return b"%b %b %b\n%b" % (_MARK, version.address.encode(), _signature(content, secret), content)


def open_version(source: bytes, *, secret: str, address: str | None = None) -> Version:
    """Return the sealed version, or raise ConfigError with one sentence.

    address  the expected one; None: any

    Checks in this order, and parses nothing before the signature is verified: size, format, address, signature, JSON,
    shape and numbers.
    """
    if len(source) > MOST_BYTES:
        raise ConfigError(f"version: got {len(source):,} bytes; at most {MOST_BYTES:,}")
    line, _, content = source.partition(b"\n")
    match = _FIRST_LINE.fullmatch(line)
    if match is None:
        raise ConfigError(f"version: {_looks_like(source)}; a version begins with its address and its signature")
    digest = match[1].decode()
    if address is not None and check_address(address) != digest:
        raise ConfigError(f"version: this is {digest}, asked for was {address}")
    if _address_of(content) != digest:
        raise ConfigError(f"version: its content is not that of {digest}: changed, or cut off")
    if not hmac.compare_digest(_signature(content, secret), match[2]):
        raise ConfigError(f"version: the signature of {digest} was not made with this deployment's secret")
    version = _read(parse_json("version", content))
    if version.address != digest:
        raise ConfigError(f"version: {digest} is not written canonically")
    return version


def check_address(text: str) -> str:
    """Return a well-formed address, safe as the name of a file or a row. Raises ConfigError."""
    if not ADDRESS.fullmatch(text):
        raise ConfigError(f"version: got {text!r:.60} as an address; pv- and 32 hexadecimal digits")
    return text


# --------------------------------------------------------------------------- publishing


def misfit(version: Version, *, kind: Kind, scorer: str) -> str | None:
    """Return why a version cannot serve a route, as a clause after its address; None: it can.

    scorer  label of the route's scorer

    The model is not compared: a certificate holds for the model of its evidence alone, and another one ends the epoch.
    """
    if version.kind != kind:
        return f"is for routes of kind {version.kind!r}; this one is {kind!r}"
    if version.scorer != scorer:
        return f"was judged by the scorer {version.scorer!r}; here answers are read by {scorer!r}"
    return None


def overtaken(follows: int, latest: int) -> str | None:
    """Compare and swap: return why a publication that follows number `follows` is refused; None: it is not."""
    if follows == latest:
        return None
    if follows > latest:
        return f"it follows publication {follows}, which there is not: the latest is {latest}"
    return f"publication {latest} came in between; this one follows {follows}. Check what is active, and try again"


# --------------------------------------------------------------------------- parts


def _address_of(content: bytes) -> str:
    return f"pv-{hashlib.sha256(_MARK + content).hexdigest()[:32]}"


def _signature(content: bytes, secret: str) -> bytes:
    if not secret:
        raise ConfigError("version: there is no secret to sign with; the deployment's own, not empty")
    key = secret.encode("utf-8", "surrogatepass")
    return hmac.new(key, _MARK + content, hashlib.sha256).hexdigest().encode()


def _looks_like(source: bytes) -> str:
    if not source:
        return "got nothing"
    if source.startswith(_MARK):
        return "its first line is broken"
    return f"got {next((what for sign, what in _LOOKS if source.startswith(sign)), 'something else')}"


def _check_words(version: Version) -> None:
    if version.form not in get_args(Form):
        raise ConfigError(f"version.form: got {describe_value(version.form)}; one of {', '.join(get_args(Form))}")
    if version.kind not in get_args(Kind):
        raise ConfigError(f"version.kind: got {describe_value(version.kind)}; one of {', '.join(get_args(Kind))}")
    if version.form == "learned" and version.model_family is None:
        raise ConfigError("version.model_family: missing; what was learned was learned on one family of models")
    lineage = version.lineage
    if lineage.parent is not None:
        check_address(lineage.parent)
    if not lineage.proposed_by or not lineage.why:
        raise ConfigError("version.lineage: must say who or what proposed it, and why")
    for name in ("since_seq", "to_seq"):
        seq = getattr(lineage, name)
        if seq is not None and (type(seq) is not int or seq < 0):
            raise ConfigError(f"version.lineage.{name}: got {describe_value(seq)}; a row of the log, at least 0")
    if lineage.proposed_s is not None:
        exact_float("version.lineage.proposed_s", lineage.proposed_s, least=0.0, most=1e12)


def _check_text(where: str, value: object) -> None:
    if not isinstance(value, str) or len(value) > MOST_CHARS:
        got = f"{len(value):,} characters" if isinstance(value, str) else describe_value(value)
        raise ConfigError(f"{where}: got {got}; a text of at most {MOST_CHARS:,} characters")


def _check_plain(where: str, value: object, depth: int) -> None:
    if depth == 0:
        raise ConfigError(f"{where[:80]}…: tables inside tables are at most {MOST_DEPTH} deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_text(f"{where}, a key", key)
            _check_plain(f"{where}.{key:.60}", inner, depth - 1)
    elif isinstance(value, (list, tuple)):
        if len(value) > MOST_ITEMS:
            raise ConfigError(f"{where}: got {len(value):,} items; at most {MOST_ITEMS:,}")
        for at, inner in enumerate(value):
            _check_plain(f"{where}[{at}]", inner, depth - 1)
    elif isinstance(value, str):
        _check_text(where, value)
    elif value is not None and not isinstance(value, bool):
        exact_float(where, value, least=-MOST, most=MOST)


def _signals_of(form: str, body: Mapping[str, Any]) -> tuple[FoldSpec, ...]:
    needs = build_policy(body).needs if form == "policy" else load_version(body, where="version.body").needs
    return tuple(sorted(resolve_needs(tuple(needs)), key=lambda one: (one.name, repr(one.parameters))))


def _plain_signal(signal: FoldSpec) -> dict[str, Any]:
    return {"name": signal.name, "parameters": dict(signal.parameters), "fields": list(signal.fields)}


class _Sealed(Struct, forbid_unknown_fields=True):
    schema: Literal[1]
    form: Form
    body: dict[str, Any]
    kind: Kind
    scorer: Text
    model_family: Text | None
    lineage: VersionLineage
    report_card: dict[str, Any]
    signals: list[dict[str, Any]]


def _read(plain: object) -> Version:
    sealed = convert(plain, _Sealed, "version")
    read = {name: getattr(sealed, name) for name in _Sealed.__struct_fields__ if name not in ("schema", "signals")}
    version = Version(**read)
    if sealed.signals != [_plain_signal(one) for one in version.signals]:
        raise ConfigError("version.signals: its body reads other signals here than when the version was made")
    return version


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(inner) for key, inner in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(inner) for inner in value)
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_thawed(inner) for inner in value]
    return value


# --------------------------------------------------------------------------- differences

_SHORT_LIST: Final = 8  # longest list of numbers written out
_MOST_CHARS: Final = 80  # of one value
_NOTHING: Final = "nothing"
_SIGNALS: Final = "signals"
_MODELS: Final = "body.models"


def diff_plain(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line per difference of two versions as plain data, such as `body.threshold: 0.95 → 0.9`."""
    old, new = (dict(_leaves("", plain)) for plain in (before, after))
    places = [*old, *(place for place in new if place not in old)]
    return tuple(
        f"{place}: {old.get(place, _NOTHING)} → {new.get(place, _NOTHING)}"
        for place in places
        if old.get(place) != new.get(place)
    )


def _leaves(where: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(f"{where}.{name}" if where else name, inner)
    elif where == _SIGNALS and value:
        for signal in value:
            inside = ", ".join(f"{name}={value}" for name, value in sorted(signal["parameters"].items()))
            yield f"{where}.{signal['name']}", f"read ({inside})" if inside else "read"
    elif where == _MODELS and isinstance(value, list):
        for at, model in enumerate(value):
            target, n_features = model["trained"]["target"], len(model["features"])
            yield f"{where}[{at}]", f"model {_digest(model)} of {n_features:,} features, target {target}"
    elif isinstance(value, list) and len(value) > _SHORT_LIST and all(isinstance(one, (int, float)) for one in value):
        yield where, f"{len(value):,} numbers from {min(value):g} to {max(value):g} ({_digest(value)})"
    elif isinstance(value, list) and any(isinstance(one, (list, Mapping)) for one in value):
        for at, one in enumerate(value):
            yield from _leaves(f"{where}[{at}]", one)
    else:
        yield where, _format_value(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical({"": value})).hexdigest()[:8]


def _format_value(value: Any) -> str:
    if value is None or value in ({}, []):
        return _NOTHING
    text = repr(value)
    return text if len(text) <= _MOST_CHARS else f"{text[: _MOST_CHARS - 12]}… ({_digest(value)})"
