"""The tables of docs/reference that say what policies and folds declare.

A table stands between two comments, `<!-- generated: name -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from suffice.policy.base import POLICIES
from suffice.policy.parameters import Parameter, parameters_of
from suffice.policy.protocol import Policy
from suffice.signals.base import FOLDS, check_need, resolve_needs
from suffice.signals.fold import SignalField

_TABLE = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    titles = head.split(", ")
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def policies(*, composed: bool) -> str:
    """The policies that are made of others, or those that are not."""
    made = {name: policy for name, policy in POLICIES.items() if policy.__module__.startswith("suffice.policy.")}
    chosen = [name for name in made if any(p.type is Policy for p in parameters_of(made[name])) == composed]
    return table("name, stops when, needs, parameters, source", (_policy(name, made[name]) for name in chosen))


def _policy(name: str, policy: Any) -> list[str]:
    summary = (inspect.getdoc(policy) or "").partition("\n")[0].removeprefix("Stop when ").removesuffix(".")
    meanings = comments_of(policy)
    parameters = [_parameter(one, meanings[one.name]) for one in parameters_of(policy)]
    needs = policy.needs_note or ", ".join(f"`{one.name}`" for one in resolve_needs(policy().needs)) or "nothing"
    return [f"`{name}`", summary, needs, "; ".join(parameters) or "none", policy.source]


def comments_of(record: type) -> dict[str, str]:
    """The comment behind each field in the source of a class and of those that it inherits from."""
    source = "".join(inspect.getsource(one) for one in record.__mro__ if one.__module__.startswith("suffice."))
    return dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.+)$", source, re.MULTILINE))


def _parameter(parameter: Parameter, says: str) -> str:
    default = "(must be given)" if parameter.required else f"= {json.dumps(parameter.default)}"
    return f"`{parameter.name}` {default}: {says}"


def folds() -> str:
    """The folds, with the fields that each fills."""
    return table("fold, fills, parameters, what it looks at, source", (_fold(name, FOLDS[name]) for name in FOLDS))


def _fold(name: str, fold: Any) -> list[str]:
    fills = ", ".join(f"`{field}`" for field in fold.fields)
    given = check_need(name).parameters
    parameters = "; ".join(f"`{key}` = {value}: {fold.parameters[key]}" for key, value in given)
    return [f"`{name}`", fills, parameters or "none", fold.looks_at, fold.source]


def fields() -> str:
    """The fields of Signals: those of the observer, then those of each fold."""
    rows = [
        ["`step`", "index of the step", "from 1", "never"],
        ["`tokens_used`", "tokens generated so far, probes left out", "from 0", "never"],
        ["`answer`", "the answer that would be delivered now, normalised", "text", "there is none"],
    ]
    for fold in FOLDS.values():
        declared: Mapping[str, SignalField] = fold.fields  # type: ignore[attr-defined]
        rows += [[f"`{name}`", one.says, _range(name, one), one.unknown] for name, one in declared.items()]
    return table("field, what it is, range, unknown", rows)


def _range(name: str, field: SignalField) -> str:
    if name == "query":
        return "–"
    if field.low == -math.inf:
        return f"at most {field.high:g}"
    said = f"from {field.low:g}" if field.high == math.inf else f"{field.low:g} to {field.high:g}"
    return said.replace("-", "−")


TABLES: Mapping[str, Callable[[], str]] = {
    "policies": lambda: policies(composed=False),
    "composed policies": lambda: policies(composed=True),
    "folds": folds,
    "fields": fields,
}


def fill_tables(page: str) -> str:
    """The page with its generated tables as the code declares them."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", page)
