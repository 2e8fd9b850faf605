"""What a policy is, the table of all of them, and the way from configuration to policy and back.

Knows names, parameters and versions; refuses to know signals' values (that is the policies' own
business), routes, certificates and who obeys.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

from suffice.errors import ConfigError
from suffice.policy.counts import BetaVote
from suffice.policy.parameters import parameters_of, values_of
from suffice.policy.rules import ConfidenceThreshold, FixedBudget, Never, StableAnswer
from suffice.types import Decision, Signals


class Policy(Protocol):
    """A pure rule from Signals to Decision.

    Holds for every policy: the same signals give the same decision, it reads only the fields that its
    folds fill (and `step`, `tokens_used`, `answer`), what is unknown continues, and two policies with
    the same parameters are equal.
    """

    name: ClassVar[str]  # the same in configuration, logs, metrics and docs

    @property
    def needs(self) -> tuple[str, ...]:
        """The signal folds that it reads: names in `suffice.signals.base.FOLDS`."""
        ...

    def decide(self, s: Signals) -> Decision:
        """Continue or stop, with a sentence that an operator can read."""
        ...


_ALL: tuple[type[Policy], ...] = (Never, FixedBudget, StableAnswer, ConfidenceThreshold, BetaVote)
POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in _ALL}


def build_policy(spec: Mapping[str, Any]) -> Policy:
    """Turn `{"policy": name, **parameters}` into a policy; an empty mapping is `never`.

    Raises ConfigError, and nothing else, whatever is in the mapping: for an unknown name or parameter with
    the nearest known one, for a missing parameter, and for a value of the wrong type or out of range.
    """
    if not isinstance(spec, Mapping):
        raise ConfigError(f"policy: must be a table, got {type(spec).__name__}")
    if not spec:
        return Never()
    given = dict(spec)
    name = given.pop("policy", None)
    if not isinstance(name, str) or name not in POLICIES:
        raise ConfigError(f"policy: unknown name {_short(name)}; {_way_out(name, POLICIES)}")
    policy = POLICIES[name]
    declared = {parameter.name: parameter for parameter in parameters_of(policy)}
    for key in given:
        if key not in declared:
            raise ConfigError(f"policy.{name}: unknown parameter {_short(key)}; {_way_out(key, declared)}")
    for parameter in declared.values():
        if parameter.required and parameter.name not in given:
            raise ConfigError(f"policy.{name}.{parameter.name}: missing; {parameter.allowed()}")
    return policy(**given)


def describe(policy: Policy) -> dict[str, Any]:
    """The mapping from which `build_policy` builds an equal policy; every parameter is written out.

    Raises ConfigError for an object whose class is not in POLICIES.
    """
    name = getattr(policy, "name", None)
    if not isinstance(name, str) or POLICIES.get(name) is not type(policy):
        raise ConfigError(f"policy: {type(policy).__name__} is unknown; known: {', '.join(sorted(POLICIES))}")
    return {"policy": name, **values_of(policy)}


def version_of(policy: Policy) -> str:
    """The policy's address by content, such as `p-1a2b3c4d5e6f`: equal policies, equal versions, everywhere.

    48 bits of BLAKE2b over the canonical JSON of `describe`.
    """
    canonical = json.dumps(describe(policy), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"p-{hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()}"


def _way_out(wrong: object, known: Iterable[str]) -> str:
    """What the writer may have meant, and what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong[:100], names, n=1, cutoff=0.5) if isinstance(wrong, str) else []
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(names) or 'it has none'}"


def _short(value: object) -> str:
    if not isinstance(value, str):
        return f"of type {type(value).__name__}"
    return repr(value) if len(value) <= 80 else f"{value[:77]!r}..."
