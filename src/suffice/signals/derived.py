"""Fields that a model may read beside those of Signals: simple numbers made of them.

Each is written twice, for one step and for columns of steps, and knows nothing but its inputs. An input
that is unknown makes it unknown; not a number stands for unknown in a column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Column: TypeAlias = NDArray[np.float64]

_MOST_LEAD = 3.0


@dataclass(frozen=True, slots=True)
class DerivedField:
    """One derived field.

    says   what it is, in one plain sentence
    reads  the fields of Signals that it is made of
    one    from their known numbers to its own; None: unknown after all
    many   the same of columns
    """

    says: str
    reads: tuple[str, ...]
    one: Callable[..., float | None]
    many: Callable[..., Column]


def _over_step(count: float, step: float) -> float:
    return count / step if step > 1 else count


def _over_steps(count: Column, step: Column) -> Column:
    return count / np.maximum(step, 1.0)


def _remaining(step: float, share: float) -> float | None:
    if not 0.0 < share <= 1.0:
        return None
    return round(step / share) - step


def _remaining_many(step: Column, share: Column) -> Column:
    usable = np.where((share > 0.0) & (share <= 1.0), share, np.nan)
    return np.round(step / usable) - step


def _lead_share(top: float, second: float, step: float, share: float) -> float | None:
    remaining = _remaining(step, share)
    if remaining is None:
        return None
    return min(_MOST_LEAD, (top - second) / remaining) if remaining > 0 else _MOST_LEAD


def _lead_share_many(top: Column, second: Column, step: Column, share: Column) -> Column:
    remaining = _remaining_many(step, share)
    lead = top - second
    ratio = np.minimum(_MOST_LEAD, lead / np.maximum(remaining, 1.0))
    return np.where(remaining > 0, ratio, np.where(np.isnan(remaining + lead), np.nan, _MOST_LEAD))


def _settled(top: float, second: float, step: float, share: float) -> float | None:
    remaining = _remaining(step, share)
    if remaining is None:
        return None
    return 1.0 if remaining == 0 or top - second > remaining else 0.0


def _settled_many(top: Column, second: Column, step: Column, share: Column) -> Column:
    remaining = _remaining_many(step, share)
    lead = top - second
    settled = ((remaining == 0) | (lead > remaining)).astype(np.float64)
    return np.where(np.isnan(remaining + lead), np.nan, settled)


DERIVED: Final[Mapping[str, DerivedField]] = {
    "tokens_per_step": DerivedField(
        "Tokens generated so far over the steps so far.", ("tokens_used", "step"), _over_step, _over_steps
    ),
    "streak_share": DerivedField(
        "Steps in a row with the same trial answer over the steps so far.",
        ("answer_streak", "step"),
        _over_step,
        _over_steps,
    ),
    "vote_share": DerivedField(
        "Steps that gave an answer over the steps so far.", ("n_votes", "step"), _over_step, _over_steps
    ),
    "lead": DerivedField(
        "Votes of the leading answer minus those of the runner-up.",
        ("top_votes", "second_votes"),
        lambda top, second: top - second,
        lambda top, second: top - second,
    ),
    "remaining_steps": DerivedField(
        "Planned steps that are still to come; unknown without a plan.",
        ("step", "step_share"),
        _remaining,
        _remaining_many,
    ),
    "lead_share": DerivedField(
        "The lead over the planned steps that remain, at most 3, and 3 where none remain; unknown without a plan.",
        ("top_votes", "second_votes", "step", "step_share"),
        _lead_share,
        _lead_share_many,
    ),
    "settled": DerivedField(
        "1 where the runner-up cannot draw level in the planned steps that remain, else 0; unknown without a plan.",
        ("top_votes", "second_votes", "step", "step_share"),
        _settled,
        _settled_many,
    ),
}
