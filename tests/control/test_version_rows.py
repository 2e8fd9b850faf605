"""Audits are replayed as a version serves: where it gives up a hopeless run, a stop needs no answer."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from suffice.control.evidence.audits import Audit
from suffice.control.evidence.versions import ReplayedAudits
from suffice.learn.version import N_FOLDS, fold_version
from suffice.model.artefact import StopModel, TrainingRecord
from suffice.model.ensemble import Ensemble, Linear
from suffice.policy.folded_version import FoldedVersion
from suffice.types import Episode
from tests.control.made import run

TRAINED = TrainingRecord(n_episodes=1, n_questions=1, digest="", target="as-good", seed=0)
SURE = Ensemble((Linear((0.0,), 9.0),))


@pytest.mark.parametrize(("hopeless", "z"), [(None, 0), (SURE, 1)])
def test_a_run_that_is_given_up_before_its_first_answer_is_lost(hopeless: Ensemble | None, z: int) -> None:
    model = StopModel(features=("step_share",), suffices=SURE, hopeless=hopeless, trained=TRAINED)
    served = fold_version(FoldedVersion(models=(model,) * N_FOLDS, levels=((0.5,),) * N_FOLDS))
    request, outcome = run(1, random.Random(0), sure=True)
    first, *others = outcome.steps
    outcome = replace(outcome, steps=(replace(first, answer=None), *others))
    audit = Audit(seq=2, at=1, ended_at_s=0.0, episode=Episode(request=request, outcome=outcome))
    replayed = ReplayedAudits(match=lambda answer, gold: answer == gold, wave=1)
    replayed.deploy(served, 1)
    assert replayed.of([audit])[audit.id].z == z
