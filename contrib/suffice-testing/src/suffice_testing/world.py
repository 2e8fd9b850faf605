"""A model server with known truth: of every question, the answer at each checkpoint, the final answer and the gold one.

What a run loses by stopping is therefore known for every single request, and can be changed while requests run.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from suffice_testing.prompt import cut, visible_length
from suffice_testing.reply import AnswerTokens, FakeRequest, Reply

_NUMBER = re.compile(r"item (\d+)\b")
_FORMS: Mapping[str, str] = {  # a question of each class, as the product reads the class from its form
    "number": "How many parts does item {n} have?",
    "which": "Which box holds item {n}?",
    "when": "When was item {n} last checked?",
    "where": "Where does item {n} stand?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How the questions of one class behave; change it to change the world.

    p_right   that the final answer is the gold one
    p_same    samples: that one of them agrees with the final answer
    p_turn    that the run holds on to another answer almost to its end and then turns: what every early stop loses
    p_first   that the first answers already are what the run holds on to; else it settles within its first half
    """

    p_right: float = 0.8
    p_same: float = 0.9
    p_turn: float = 0.0
    p_first: float = 0.5
    finish_tokens: int = 4  # of an answer after a stopped thought
    line_tokens: int = 6  # of each step of a thought
    delay_s: float = 0.0  # of each call, before its first token
    token_s: float = 0.0  # of each token; a thought that is out at once is over before anybody can stop it


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    n: int
    query_class: str
    gold: str
    final: str  # what the full run answers
    answers: tuple[str, ...]  # after each step of the thought, or of each sample
    profile: Profile
    model: str = ""  # as it names itself; "": as it was called

    @property
    def text(self) -> str:
        return _FORMS[self.query_class].format(n=self.n)

    def is_right(self, answer: str | None) -> bool:
        return answer == self.gold

    def lost_by(self, answer: str | None) -> int:
        """Exact Match of the full run less that of this answer: 1, 0 or -1."""
        return self.is_right(self.final) - self.is_right(answer)


@dataclass(slots=True, kw_only=True)
class World:
    """Makes questions and answers for them, as the functions of one seed.

    votes     samples of a full vote; 0: the model thinks in steps
    profiles  by class; to be replaced while requests run, for later questions
    shares    of the classes among the questions; missing ones are equal
    """

    seed: int
    votes: int = 0
    n_steps: int = 8
    profiles: dict[str, Profile] = field(default_factory=lambda: {"number": Profile()})
    shares: dict[str, float] = field(default_factory=dict)
    model: str = ""
    made: dict[int, Question] = field(default_factory=dict)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def change(self, query_class: str, **changes: float) -> None:
        """Change a class for all later questions."""
        self.profiles[query_class] = replace(self.profiles[query_class], **changes)  # type: ignore[arg-type]

    def ask(self, query_class: str = "") -> Question:
        """Make a question of a class; "": drawn by the shares."""
        names = list(self.profiles)
        name = query_class or self._random.choices(names, [self.shares.get(name, 1.0) for name in names])[0]
        profile, n = self.profiles[name], len(self.made) + 1
        final, other, third = (str(k) for k in self._random.sample(range(10, 100), 3))
        gold = final if self._random.random() < profile.p_right else third
        made = self._votes if self.votes else self._thought
        question = Question(
            n=n,
            query_class=name,
            gold=gold,
            final=final,
            answers=made(profile, final, other),
            profile=profile,
            model=self.model,
        )
        self.made[n] = question
        return question

    def _votes(self, profile: Profile, final: str, other: str) -> tuple[str, ...]:
        early = (self.votes - 1) // 2  # too few to win, enough to look decided
        if self._random.random() < profile.p_turn:
            return (other,) * early + (final,) * (self.votes - early)
        while True:
            drawn = [final if self._random.random() < profile.p_same else self._guess() for _ in range(self.votes)]
            first, *rest = Counter(drawn).most_common(2)
            if first[0] == final and (not rest or rest[0][1] < first[1]):
                return tuple(drawn)

    def _thought(self, profile: Profile, final: str, other: str) -> tuple[str, ...]:
        settled = 0 if self._random.random() < profile.p_first else self._random.randint(1, self.n_steps // 2)
        turns = self._random.random() < profile.p_turn
        guesses = [self._guess() for _ in range(settled)]
        held = (other if turns else final,) * (self.n_steps - 1 - settled)
        return (*guesses, *held, final)

    def _guess(self) -> str:
        return str(self._random.randint(100, 999))

    # ---- the server's side

    def __call__(self, seen: FakeRequest) -> Reply:
        question = self.made[int(_NUMBER.findall(seen.text)[-1])]
        extra = {"model": question.model} if question.model else {}
        if self.votes:
            text = f"It is {question.answers[seen.nth_same % self.votes]}"
            return Reply(answer=cut(text), first_delay_s=question.profile.delay_s, extra=extra)
        lines = [_line(k, question.profile.line_tokens) for k in range(self.n_steps)]
        ends = [visible_length("".join(lines[: k + 1])) for k in range(self.n_steps)]

        def after(thought: str) -> AnswerTokens:
            n_done = sum(end <= visible_length(thought) for end in ends)
            answer = question.answers[max(n_done, 1) - 1]
            spoken = cut("so " * (question.profile.finish_tokens - 1) + answer) if _is_finish(seen) else (answer,)
            return AnswerTokens(spoken, (-0.1,) * len(spoken))

        return Reply(
            reasoning=tuple(token for line in lines for token in cut(line)),
            answer=cut(f"It is {question.final}"),
            answer_after=after,
            first_delay_s=question.profile.delay_s,
            delay_s=0.0 if seen.is_raw and not _is_finish(seen) else question.profile.token_s,
            extra=extra,
        )


def _line(step: int, n_tokens: int) -> str:
    return f"step {step}" + " on" * (n_tokens - 3) + "\n"


def _is_finish(seen: FakeRequest) -> bool:
    """Whether a stopped run's answer is asked for, and not only a trial answer: a probe caps its tokens."""
    return not (seen.body.get("max_tokens") or seen.body.get("n_predict"))
