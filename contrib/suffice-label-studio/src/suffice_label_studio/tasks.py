"""Runs as tasks of Label Studio, and the labelling form.

Format: labelstud.io/guide/task_format. `suffice.review.imported_feedback` reads the annotations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from suffice.assurance.runs import LabelledEpisode
from suffice.control.evidence.judging import differs, human_label, is_full
from suffice.review.imported_feedback import EPISODE, NO_ANSWER, data_of, full_is_a
from suffice.types import LabelRequest

NO_QUESTION: Final = "(the log keeps no question; give a file of questions when tasks are exported)"
LABEL_CONFIG: Final = """\
<View>
  <Header value="Question"/>
  <Text name="question" value="$question"/>
  <Header value="Answer A"/>
  <Text name="answer_a" value="$answer_a"/>
  <Header value="Answer B"/>
  <Text name="answer_b" value="$answer_b"/>
  <Choices name="verdict" toName="question" choice="single" required="true">
    <Choice value="A is right" hotkey="1"/>
    <Choice value="B is right" hotkey="2"/>
    <Choice value="Both are right" hotkey="3"/>
    <Choice value="Neither is right" hotkey="4"/>
    <Choice value="I cannot tell" hotkey="5"/>
  </Choices>
  <Header value="The right answer, if neither of them says it"/>
  <TextArea name="gold" toName="question" maxSubmissions="1" rows="1"/>
  <Header value="How well does A serve whoever asked?"/>
  <Rating name="rating_a" toName="answer_a" maxRating="5"/>
  <Header value="And B?"/>
  <Rating name="rating_b" toName="answer_b" maxRating="5"/>
  <Header value="Remarks"/>
  <TextArea name="comment" toName="question" maxSubmissions="1" rows="2"/>
</View>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToJudge:
    episode_id: str
    route: str
    question: str | None  # None: not supplied
    answer: str | None  # of the full run, as delivered
    would_answer: str | None  # the answer with the stop
    why: str  # a sentence


def task(run: ToJudge) -> dict[str, Any]:
    full, stopped = run.answer or NO_ANSWER, run.would_answer or NO_ANSWER
    first, second = (full, stopped) if full_is_a(run.episode_id) else (stopped, full)
    return {
        "data": {
            EPISODE: run.episode_id,
            "route": run.route,
            "question": run.question or NO_QUESTION,
            "answer_a": first,
            "answer_b": second,
            "why": run.why,
        },
    }


def parse_task_episodes(tasks: Any) -> set[str]:
    return {str(data[EPISODE]) for data in map(data_of, tasks if isinstance(tasks, list) else ()) if EPISODE in data}


Which: TypeAlias = Literal["wanted", "differing"]
DIFFERS = "the stop would have answered otherwise"


def to_judge(
    episodes: Iterable[LabelledEpisode],
    wanted: Mapping[str, LabelRequest],
    *,
    which: Which,
    questions: Mapping[str, str],
) -> Iterator[ToJudge]:
    """Yield runs without a label of a person, in the order in which they ended.

    wanted     open label requests, by episode
    which      "wanted": only those; "differing": every full run whose stop would have answered otherwise
    questions  texts by `Request.question_key`
    """
    for item in episodes:
        request, outcome = item.episode.request, item.episode.outcome
        asked = wanted.get(request.episode_id)
        if asked is None and not (which == "differing" and is_full(item) and differs(item)):
            continue
        if human_label(item.labels) is not None:
            continue
        yield ToJudge(
            episode_id=request.episode_id,
            route=request.route,
            question=questions.get(request.question_key),
            answer=outcome.answer,
            would_answer=outcome.would_answer if asked is None else asked.would_answer,
            why=DIFFERS if asked is None else asked.why,
        )
