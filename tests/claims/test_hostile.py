"""What those who label, and whatever learns, can do to a certificate: the truth is known, and measured apart (F33-F37).

Streams are drawn from seeds, so a failure here is a change of the code and no bad luck. `-s` prints the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import pytest

from suffice.arrays import Bools, Floats
from suffice.assurance.labels import TrustedLabel, resolve_labels
from suffice.certification.certifier import Certifier
from suffice.certification.evidence import Evidence
from suffice.certification.plan import Plan
from suffice.learn.audits import AuditRuns
from suffice.learn.version import FoldedModels, Learner, PGood, fit_served
from tests.learn.runs_made import audits, believing, fit_learned

MAX_EM_DROP: Final = 0.02
PLAN: Final = Plan(
    max_em_drop=MAX_EM_DROP,
    warm_up=800,
    burst=800,
    n_levels=9,
    refit_every=800,
    watches_signals=False,
    watches_outcomes=False,
    cost_exponent=0.0,
)
N_AUDITS: Final = 800


def runs(n: int, seed: int, *, harm: float = 0.12) -> AuditRuns:
    """Runs of three steps whose answer at the first is another one in a third of them; lower scores lose more."""
    rng = np.random.default_rng(seed)
    score = rng.uniform(0.5, 1.0, n)
    lost = rng.random(n) < harm * 2 * (1 - score)
    differs = lost | (rng.random(n) < 0.05)
    return audits(
        [[one, 1.0, 1.0] for one in score],
        z=[[int(one), 0, 0] for one in lost],
        d=[[bool(one), False, False] for one in differs],
    )


def heard(truth: AuditRuns, *, part: float, one_key: bool, seed: int) -> AuditRuns:
    """The audits as labels make them: `part` of all labels lies, and each lie says that a lost answer was gained."""
    rng, first = np.random.default_rng(seed), truth.starts[:-1]
    differing = np.flatnonzero(truth.d[first])
    n_lies = round(part * len(differing))
    lied = set(rng.permutation(np.flatnonzero(truth.z[first] == 1))[:n_lies].tolist())
    words = [
        TrustedLabel(
            audit=str(audit),
            seq=seq,
            source="user",
            trust=0,
            verdict=-1 if audit in lied else int(truth.z[first[audit]]),
            key=("liar" if one_key else f"liar {audit}") if audit in lied else f"user {rng.integers(60)}",
        )
        for seq, audit in enumerate(rng.permutation(differing).tolist())
    ]
    verdicts = resolve_labels(words, differing=set(map(str, differing.tolist())))
    z, label_at = truth.z.copy(), np.full(len(truth), np.inf)
    label_at[~truth.d[first]] = 0.0
    for audit, verdict in verdicts.items():
        assert isinstance(verdict, int)
        z[first[int(audit)]], label_at[int(audit)] = verdict, 0.0
    return replace(truth, z=z, label_at=label_at)


def kept(
    evidence: AuditRuns, learner: Learner = believing, fit: Callable[..., FoldedModels | None] = fit_served
) -> Certifier:
    keeper = Certifier(PLAN, learner, fit=fit)
    keeper.add_audits(evidence)
    keeper.look(Evidence(at=float(len(evidence))))
    return keeper


def true_drop(keeper: Certifier, clean: AuditRuns) -> float:
    """What the level in force loses on runs that no liar has touched."""
    assert keeper.served is not None
    return float(clean.z[keeper.served.rows_at(clean, keeper.level)].mean())


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("one_key", [True, False], ids=["one key", "many keys"])
def test_lies_of_a_few_labels_leave_the_certified_level_within_the_budget(one_key: bool) -> None:
    """F33: at 1, 5 and 20 % of lies the EM on a clean holdout. Many keys at 20 % are beyond what a cap can hold."""
    clean, over = runs(8_000, 1), dict[float, int]()
    drops = dict[float, float]()
    n_windows = 16
    for part in (0.0, 0.01, 0.05, 0.20):
        keepers = [kept(heard(runs(N_AUDITS, 100 + s), part=part, one_key=one_key, seed=s)) for s in range(n_windows)]
        lost = [true_drop(keeper, clean) for keeper in keepers]
        over[part], drops[part] = sum(drop > MAX_EM_DROP for drop in lost), float(np.mean(lost))
        print(f"{part:4.0%} lies: mean drop {100 * drops[part]:.2f} points, over the budget {over[part]}/{n_windows}")
    assert max(over[part] for part in (0.0, 0.01, 0.05)) == 0
    if one_key:
        assert over[0.20] == 0, "one key is held to its share"
    else:
        assert drops[0.20] > 2 * drops[0.0], "said on the page: with many keys a fifth of lies moves the level"


def test_a_model_that_would_stop_everything_at_once_is_certified_nowhere() -> None:
    """F34: whatever a model says of itself, what it loses on audits decides; here 12 % of its stops lose."""

    def reckless(_x: Floats, _good: Bools, _weight: Floats) -> PGood:
        return lambda rows: np.full(len(rows), 1.0)

    keepers = [kept(runs(N_AUDITS, 300 + seed), reckless, fit_learned) for seed in range(20)]
    assert all(keeper.served is not None for keeper in keepers)
    assert [keeper.level for keeper in keepers] == [0] * 20

    clean = runs(8_000, 1)
    rescued = [kept(runs(N_AUDITS, 300 + seed), reckless) for seed in range(20)]
    assert {keeper.served.target for keeper in rescued if keeper.served} == {"value"}, "it is preferred to such a model"
    assert sum(true_drop(keeper, clean) > MAX_EM_DROP for keeper in rescued) <= 3


def test_silence_is_not_praise() -> None:
    """F37: losses are labelled late or never and everything else at once; by age alone nothing false is certified."""
    fooled = {True: 0, False: 0}
    clean, n_streams = runs(8_000, 1), 12
    for seed in range(n_streams):
        truth = runs(2 * N_AUDITS, 500 + seed)
        lost = truth.z[truth.starts[:-1]] == 1
        late = replace(truth, label_at=np.where(lost, np.inf, truth.at))
        for by_age in fooled:
            # The naive reading takes what nobody has complained of for harmless.
            shown = late if by_age else replace(late, z=np.where(lost[late.run_of_row], 0, late.z), label_at=truth.at)
            fooled[by_age] += true_drop(kept(shown), clean) > MAX_EM_DROP
    print(f"over the budget: by age {fooled[True]} of {n_streams}, silence taken for praise {fooled[False]}")
    assert fooled[True] == 0
    assert fooled[False] > 0.9 * n_streams
