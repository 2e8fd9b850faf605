"""Regimes as tables of query classes: their shares, how hard they are, and how reliable the confidence is.

The phenomena are those of recorded runs: answers that settle at some step, lucky early hits, wrong answers held
confidently and corrected late, correct answers lost to overthinking, and noisy confidence biased by class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from suffice.arrays import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryClass:
    """One kind of question, as this model handles it. Rates are fractions, confidences are logits."""

    share: float  # of traffic; shares are scaled to sum to 1
    p_right: float  # P(the settled answer is correct)
    steps: float  # mean natural length, before it is cut to 3 … 16
    settles: tuple[float, float]  # a and b of the Beta distribution of (settling step - 1) / (length - 1)
    p_lucky: float  # P(an answer drawn while searching is the settled one)
    p_plateau: float  # P(a wrong answer is held confidently for three quarters of the run)
    p_overthink: float  # P(more reasoning leads away from the settled answer)
    boldness: float = 0.0  # bias of the confidence at every step
    false_boldness: float = 0.0  # added while searching
    kind: int = 0  # index of the class that features show, one of the first four


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassWorld:
    """All classes, and the model's confidence in each phase of a run, as a logit."""

    classes: tuple[QueryClass, ...]
    searching: float = -0.4
    on_plateau: float = 1.2
    shift: float = 0.0  # added to every confidence

    def table(self) -> dict[str, Floats]:
        """Each parameter as a column over the classes, `settles` as two; shares sum to 1."""
        names = [field.name for field in fields(QueryClass) if field.name not in ("settles", "kind")]
        columns = {name: np.array([getattr(c, name) for c in self.classes], dtype=np.float64) for name in names}
        columns["share"] /= columns["share"].sum()
        columns["settle_a"] = np.array([c.settles[0] for c in self.classes])
        columns["settle_b"] = np.array([c.settles[1] for c in self.classes])
        for name in ("searching", "on_plateau", "shift"):
            columns[name] = np.full(len(self.classes), getattr(self, name))
        return columns


def _with(world: ClassWorld, **columns: tuple[float, ...]) -> ClassWorld:
    changes = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return replace(world, classes=tuple(replace(c, **c_) for c, c_ in zip(world.classes, changes, strict=True)))


USUAL: Final = ClassWorld(
    classes=(
        QueryClass(
            share=0.40,
            p_right=0.96,
            steps=6.0,
            settles=(1.6, 3.6),
            p_lucky=0.45,
            p_plateau=0.010,
            p_overthink=0.005,
            boldness=0.5,
            false_boldness=-0.2,
            kind=0,
        ),
        QueryClass(
            share=0.30,
            p_right=0.84,
            steps=9.0,
            settles=(2.2, 3.0),
            p_lucky=0.30,
            p_plateau=0.025,
            p_overthink=0.01,
            boldness=0.1,
            false_boldness=0.2,
            kind=1,
        ),
        QueryClass(
            share=0.20,
            p_right=0.60,
            steps=12.5,
            settles=(3.0, 2.6),
            p_lucky=0.20,
            p_plateau=0.06,
            p_overthink=0.02,
            boldness=-0.4,
            false_boldness=0.9,
            kind=2,
        ),
        QueryClass(
            share=0.10,
            p_right=0.80,
            steps=11.0,
            settles=(1.8, 3.4),
            p_lucky=0.35,
            p_plateau=0.025,
            p_overthink=0.12,
            boldness=0.4,
            false_boldness=0.5,
            kind=3,
        ),
    )
)

# More confident, two to three times the false plateaus, harder questions: visible in the signals at once.
HARSH: Final = replace(
    _with(USUAL, share=(0.28, 0.30, 0.32, 0.10), p_right=(0.95, 0.80, 0.52, 0.76), p_plateau=(0.025, 0.07, 0.15, 0.06)),
    searching=0.5,
    on_plateau=1.8,
    shift=0.25,
)

# Only three times the false plateaus: the signals look as before but are less reliable.
STEALTH: Final = _with(USUAL, p_plateau=(0.03, 0.09, 0.20, 0.08))

# A better model and easier questions.
BENIGN: Final = replace(
    _with(USUAL, share=(0.50, 0.30, 0.12, 0.08), p_plateau=(0.003, 0.008, 0.02, 0.01)), searching=-1.0
)

# Harder questions for the same model.
HARDER: Final = _with(USUAL, share=(0.20, 0.25, 0.40, 0.15))

# A smaller model behind the same name: shorter reasoning, worse answers, confidence on another scale.
SWAPPED: Final = replace(
    _with(
        USUAL,
        steps=(4.5, 7.0, 10.0, 8.5),
        p_right=(0.92, 0.74, 0.42, 0.66),
        p_plateau=(0.03, 0.08, 0.14, 0.08),
        p_lucky=(0.40, 0.26, 0.16, 0.28),
        false_boldness=(0.3, 0.7, 1.3, 1.0),
    ),
    searching=0.0,
    on_plateau=1.7,
    shift=0.4,
)

N_TENANTS = 24  # of the regime `many`


def _tenants(world: ClassWorld, n: int, *, seed: int) -> ClassWorld:
    """Split every class into small, slightly different classes of unequal size, such as tenants."""
    rng = np.random.default_rng(seed)
    sizes = rng.pareto(1.5, n) + 0.2  # a few are large, most are small
    classes = []
    for at in range(n):
        like = world.classes[at % len(world.classes)]
        classes.append(
            replace(
                like,
                share=like.share * float(sizes[at]),
                p_right=float(np.clip(like.p_right + rng.normal(0, 0.04), 0.1, 0.99)),
                p_plateau=like.p_plateau * float(rng.lognormal(0, 0.4)),
                boldness=like.boldness + float(rng.normal(0, 0.2)),
            )
        )
    return replace(world, classes=tuple(classes))


MANY: Final = _tenants(USUAL, N_TENANTS, seed=24)

WORLDS: Final[Mapping[str, ClassWorld]] = {
    "usual": USUAL,
    "harsh": HARSH,
    "stealth": STEALTH,
    "benign": BENIGN,
    "harder": HARDER,
    "swapped": SWAPPED,
    "many": MANY,
}

Blend = Callable[[str], Floats]


def blended(before: ClassWorld, after: ClassWorld, share: Floats, classes: Ints) -> Blend:
    """Parameters of single requests between two regimes, as a function of the parameter's name.

    share    each request's distance from the old regime, 0 … 1, shape (n,)
    classes  the class of each request, shape (n,)
    """
    first, second = before.table(), after.table()
    return lambda name: (1 - share) * first[name][classes] + share * second[name][classes]
