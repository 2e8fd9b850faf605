"""The job `experiments` reports arms that are proved worse than their control, and ends experiments if it may.

Every interval of an experiment holds at every look, so looking often proves nothing too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from suffice.control.compare.experiments import read_experiment
from suffice.control.jobs.base import JobReport, JobWriter, LogJob
from suffice.control.jobs.proposals import LEAST_REST
from suffice.errors import ConfigError
from suffice.rollout.results import summarize_arm
from suffice.store.database.views import LogReader, last_place, open_reader, read_kinds
from suffice.store.routes.experiments import ExperimentRun, read_experiments
from suffice.store.rows.events import Event, ExperimentEnd, WorseArm, key_of
from suffice.telemetry import LOG

RESTS_S: Final = 60.0  # between two looks, at least


class ExperimentWatch(LogJob):
    name = "experiments"

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        if not self.is_due() or not self.path.is_file():
            return ()
        began_s, reports = self.monotonic_s(), list[JobReport]()
        with open_reader(self.path) as log:
            for held in read_experiments(log):
                if not held.runs:
                    continue
                name, ok = held.experiment.name, True
                try:
                    sentence = self._look(held, log, writer)
                except ConfigError as error:  # such as a route that the settings no longer have
                    sentence, ok = str(error), False
                if sentence:
                    LOG.warning("experiments.%s: %s", name, sentence)
                    summary, at = f"experiment {name}: {sentence}", last_place(log)
                    reports.append(JobReport(summary=summary, ok=ok, read_to_seq=at))
        self.rest(max(RESTS_S, LEAST_REST * (self.monotonic_s() - began_s)))
        return reports

    def _look(self, held: ExperimentRun, log: LogReader, writer: JobWriter) -> str:
        experiment = held.experiment
        result, written = read_experiment(log, held, self.settings), self.settings.experiments.get(experiment.name)
        known = {key_of(stored.event) for stored in read_kinds(log, "arm_worse")}
        worse = [
            WorseArm(
                experiment=experiment.name,
                run=experiment.run,
                arm=arm.arm,
                verdict=arm.verdict,
                summary=summarize_arm(result, arm),
                author=self.author,
            )
            for arm in result.arms
            if arm.verdict in ("worse", "mixed")
        ]
        new: list[Event] = [one for one in worse if key_of(one) not in known]
        sentences = [one.summary[0] for one in worse if key_of(one) not in known]
        proved = [repr(one.arm) for one in worse if one.verdict == "worse"]
        if proved and written is not None and written.end_when_worse:
            reason = f"arm {', '.join(proved)} is proved worse than {result.control!r}, and end_when_worse is set"
            summary = tuple(sentence for arm in result.arms for sentence in summarize_arm(result, arm))
            new.append(
                ExperimentEnd(
                    experiment=experiment.name, run=experiment.run, author=self.author, reason=reason, summary=summary
                )
            )
            sentences.append(f"ended: {reason}")
        writer.write(new)
        return "; ".join(sentences)
