"""Which runs somebody should judge elsewhere: in Label Studio, or wherever tasks go.

    log ──▶ wanted labels nobody has given, or all full runs whose stop would have answered otherwise ──▶ ToJudge

Knows records of the log; refuses to know files, servers and forms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

from suffice.assurance.runs import LabelledEpisode
from suffice.control.evidence.grades import persons_word
from suffice.control.people.judging import differs, is_full
from suffice.review.label_studio import ToJudge
from suffice.types import LabelRequest

Which: TypeAlias = Literal["wanted", "differing"]
DIFFERS = "the stop would have answered otherwise"


def to_judge(
    episodes: Iterable[LabelledEpisode],
    wanted: Mapping[str, LabelRequest],
    *,
    which: Which,
    questions: Mapping[str, str],
) -> Iterator[ToJudge]:
    """Runs of which nobody but a model has said what is right, in the order in which they ended.

    wanted     labels that were asked for, by episode
    which      "wanted": those alone; "differing": every full run whose stop would have answered otherwise
    questions  texts by `Request.question_key`
    """
    for item in episodes:
        request, outcome = item.episode.request, item.episode.outcome
        asked = wanted.get(request.episode_id)
        if asked is None and not (which == "differing" and is_full(item) and differs(item)):
            continue
        if persons_word(item.labels) is not None:
            continue
        yield ToJudge(
            episode_id=request.episode_id,
            route=request.route,
            question=questions.get(request.question_key),
            answer=outcome.answer,
            would_answer=outcome.would_answer if asked is None else asked.would_answer,
            why=DIFFERS if asked is None else asked.why,
        )
