"""Experiments and rollouts of the made-up month, on a route with a policy of its owner's.

People start and stop them by a calendar; the results are whatever comes out. On some questions the first three samples
agree on a wrong answer: a policy that stops at three equal answers loses them, a more patient one does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from suffice.control.compare.experiments import read_experiment
from suffice.demo import month_traffic
from suffice.demo.month_traffic import QuestionKind, drawn_from, full_run
from suffice.errors import SufficeError
from suffice.gateway.route import BuiltRoute, RolloutTrial, Variants
from suffice.replay.run import replay_run
from suffice.rollout.evidence import rules_of
from suffice.rollout.experiment import UnitIds
from suffice.rollout.results import summarize_arm as sentences
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader
from suffice.store.routes import experiments, rollouts
from suffice.telemetry import Metrics
from suffice.types import Episode, Outcome, Request
from suffice.wiring.routes import build_route

ROUTE: Final = "quiz"
SHARE: Final = 0.15  # of audits, while no rollout asks for more
OWN: Final = {"policy": "stable-answer", "streak": 5}
HASTY: Final = {"policy": "stable-answer", "streak": 3}
SOBER: Final = {"policy": "beta", "threshold": 0.95}
FIRST, SECOND, WHO = "brisk", "patience", "ann"
KINDS: Final = (
    QuestionKind(name="facts", share=0.5, p_easy=0.88, p_right=0.8, n_words=11, p_misled=0.2, p_held=0.9),
    QuestionKind(name="dates", share=0.3, p_easy=0.78, p_right=0.8, n_words=16, p_misled=0.4, p_held=0.9),
    QuestionKind(name="riddles", share=0.2, p_easy=0.5, p_right=0.85, n_words=38, p_misled=0.9, p_held=0.9),
)
TABLES: Final[dict[str, Any]] = {
    "routes": {
        ROUTE: {
            "upstream": "house",
            "kind": "samples",
            "samples": 8,
            "scorer": "number",
            "mode": "enforce",
            "policy": OWN,
            "uncertified": True,
            "audit_share": SHARE,
            "match": {"header": ROUTE},
            "max_extra_calls": 48,
            "wave": 1,
            # So that a month of so few requests shows a rollout from its beginning to its end.
            "rollout": {
                "shares": [0.25, 0.5],
                "em_margin": 0.05,
                "class_em_margin": 0.12,
                "latency_margin": 0.5,
                "error_margin": 0.1,
                "no_answer_margin": 0.1,
                "least_audits": 120,
                "least_class_audits": 30,
                "least_requests": 20,
                "warmup_requests": 20,
                "most_requests": 2_000,
                "latency_cap_s": 6,
            },
        },
    },
    "experiments": {
        FIRST: {
            "routes": [ROUTE],
            "primary": "tokens",
            "margins": {"em": 0.05},
            "warmup_units": 50,
            "max_tokens": 2_500,
            "max_latency_s": 6,
            "arms": {"full": {"full": True}, FIRST: {"weight": 1.0}},
        },
        SECOND: {
            "routes": [ROUTE],
            "primary": "tokens",
            "margins": {"em": 0.02, "satisfaction": 0.1},
            "warmup_units": 50,
            "max_tokens": 2_500,
            "max_latency_s": 6,
            "control": "five",
            "arms": {"five": {}, "six": {"policy": {"policy": "stable-answer", "streak": 6}}},
        },
    },
}


@dataclass(slots=True, kw_only=True)
class Tries:
    """The route in the making.

    secret  of the deployment, which signs versions
    salt    of the month's lots
    """

    settings: Settings
    writer: Decisions
    secret: str
    salt: str
    rng: random.Random  # its own: however many come, the other routes draw the same
    base: BuiltRoute = field(init=False)
    variants: Variants = field(init=False)
    full_tokens: list[int] = field(default_factory=list)
    _tables: dict[str, dict[str, Any]] = field(default_factory=dict)  # policies that were proposed, by address
    _plan: Iterator[tuple[float, Callable[[], None]]] = field(init=False)
    _next: tuple[float, Callable[[], None]] | None = None

    def __post_init__(self) -> None:
        route = self.settings.routes[ROUTE]
        self.base = build_route(ROUTE, route, None, self.settings.upstreams[route.upstream])
        self.variants = Variants(salt=self.salt, metrics=Metrics())
        self._plan = self._calendar()
        self._next = next(self._plan)

    def _calendar(self) -> Iterator[tuple[float, Callable[[], None]]]:
        """What people do from which part of the month on, in this order."""
        yield 0.02, lambda: self._start(FIRST, "is it worth the trouble at all?")
        yield 0.30, lambda: self._stop(FIRST, "it is: five equal answers stay")
        yield 0.31, lambda: self._propose(HASTY, "three equal answers would save two samples more")
        yield 0.50, lambda: self._go_back("it takes too long")
        yield 0.51, lambda: self._propose(SOBER, "stops where a majority is all but sure")
        yield 0.80, lambda: self._start(SECOND, "riddles: would one more answer be worth it?")

    def pass_time(self, part: float) -> None:
        """Do what is to be done by now; part of the month that is over, [0, 1]."""
        while self._next is not None and part >= self._next[0]:
            self._next[1]()
            self._next = next(self._plan, None)
            self.follow()

    def follow(self) -> None:
        with open_reader(self.writer.path) as connection:
            held, tried = rollouts.read_rollouts(connection), experiments.read_experiments(connection)
        now = rollouts.read_running_rollouts(held).get(ROUTE)
        own = rollouts.own_version(self.base.settings).address
        serves = rollouts.read_serving_version(held, ROUTE, own)
        self.variants.experiments = experiments.read_running_experiments(tried)
        self.variants.standing = {} if serves == own else {ROUTE: self._tables[serves]}
        self.variants.trials = (
            {} if now is None else {ROUTE: RolloutTrial(state=now.state, policy=self._tables[now.state.candidate])}
        )

    def ask(self, number: int, *, at_s: float) -> tuple[Request, Outcome, str]:
        share = max(SHARE, self.variants.audit_share(ROUTE))
        audit = self.rng.random() < share
        request, outcome, right = full_run(
            number,
            drawn_from(KINDS, self.rng),
            self.rng,
            route=ROUTE,
            audit=audit,
            version="",
            propensity=share if audit else 1 - share,
            certified=False,
            setup=self.base.setup,
            at_s=at_s,
        )
        served, arms = self.variants.place(self.base, lambda: UnitIds(request=request.unit))
        request = replace(request, mode=served.settings.mode, policy_version=served.policy_version, arms=arms)
        replayed = replay_run(Episode(request=request, outcome=outcome), served.policy, wave=self.base.settings.wave)
        if audit or not served.acts:
            self.full_tokens.append(outcome.usage.completion_tokens if outcome.usage is not None else 0)
            return request, month_traffic.priced(month_traffic.noted(outcome, replayed)), right
        ended = month_traffic.stopped(outcome, replayed, self.full_tokens, because="its policy has seen enough")
        return request, month_traffic.priced(ended), right

    def _start(self, name: str, reason: str) -> None:
        _done(
            experiments.start_experiment(self.writer, name, self.settings.experiments[name], author=WHO, reason=reason)
        )

    def _stop(self, name: str, reason: str) -> None:
        path = self.writer.path
        (held,) = (one for one in experiments.read_experiments(path) if one.runs and one.experiment.name == name)
        result = read_experiment(path, held, self.settings)
        results = tuple(sentence for arm in result.arms for sentence in sentences(result, arm))
        _done(experiments.stop_experiment(self.writer, name, author=WHO, reason=reason, said=results))

    def _propose(self, table: dict[str, Any], reason: str) -> None:
        route, held = self.base.settings, rollouts.read_rollouts(self.writer.path)
        own = rollouts.own_version(route)
        version = rollouts.proposed_version(held, ROUTE, route, table, author=WHO, why=reason, now_s=self.writer.now())
        one = rollouts.own_candidate(held, version, route=ROUTE, own=own)
        if isinstance(one, str):
            raise SufficeError(f"demo: {one}")
        self._tables[version.address] = table
        _done(
            rollouts.start_candidate(
                self.writer,
                one,
                author=WHO,
                reason=reason,
                name=f"{ROUTE}-{len(held) + 1}",
                rules=rules_of(route),
                secret=self.secret,
            )
        )

    def _go_back(self, reason: str) -> None:
        if ROUTE in rollouts.read_running_rollouts(rollouts.read_rollouts(self.writer.path)):
            _done(rollouts.step(self.writer, ROUTE, "rollback", author=WHO, reason=reason))


def _done(result: object) -> None:
    if isinstance(result, str):
        raise SufficeError(f"demo: {result}")
