"""The guarantee on a route now, and the sentence that `suffice status`, the console and the API print for it.

The states are in the order of the gateway's checks: what disables enforcement comes first, a certificate last. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Final, Literal, TypeAlias, get_args

from suffice.assurance.clusters import describe_clusters
from suffice.assurance.drift import Reference, detection_law
from suffice.assurance.exposure import MOST_DROP
from suffice.assurance.fidelity import FIDELITY_RISK
from suffice.assurance.guarantee import Average, Guarantee, Labels, average_sentence, sentence
from suffice.assurance.labels import AT_RISK
from suffice.review.holds import NO_OVERRIDES, ActiveOverrides, proves
from suffice.scoring.base import scorer_label
from suffice.settings import Route
from suffice.types import Epoch, EvidenceSummary, Pause, Publication

RestState: TypeAlias = Literal["off", "observe", "killed", "unread", "paused", "held", "unreadable", "idle"]
WaitState: TypeAlias = Literal[
    "unattended", "burst", "searching", "void", "unknown", "uncovered", "candidate", "unwatched", "gone"
]
State: TypeAlias = Literal[RestState, WaitState, "uncertified", "budgeted", "certified"]
STATES: Final[tuple[State, ...]] = get_args(State)

STOPS: Final[frozenset[State]] = frozenset(("certified", "budgeted", "uncertified", "candidate", "unknown"))

NOTICED_DROP: Final = 0.03  # the silent loss whose detection time the guarantee names …
NOTICED_BUDGETS: Final = 1.5  # … or this multiple of the budget, if larger

_IN_FULL: Final = "every request runs in full"
_SENTENCES: Final[Mapping[State, str]] = {
    "off": "none is needed: the route's mode is off, and its requests pass through untouched",
    "observe": "none is needed: the route observes, and nothing is stopped",
    "killed": "none is needed: the kill switch is on, and nothing is stopped",
    "unread": f"none is needed: the log cannot be read, and {_IN_FULL}",
    "paused": f"none is needed: the route is paused, and {_IN_FULL}",
    "held": f"none is needed: an override holds the route, and {_IN_FULL}",
    "unreadable": f"none is needed: too many answers cannot be read by the scorer, and {_IN_FULL}",
    "idle": f"none is needed: no policy of the route may act, and {_IN_FULL}",
    "unattended": f"none is needed: no control loop has begun with the route, and {_IN_FULL}",
    "burst": f"none is needed: the first requests of an epoch are evidence, and {_IN_FULL}",
    "searching": f"none is needed: nothing is certified, and {_IN_FULL}",
    "void": f"none is needed: what was certified does not fit the settings that run now, and {_IN_FULL}",
    "unknown": "not known here: it depends on the route's settings too; name them with --config",
    "gone": "none is needed: no route of the settings has this name, and nothing serves it any more",
    "uncovered": "none is needed: no certificate covers this request, which runs in full",
    "candidate": "this request is served by a rollout's candidate, and the route's certificate is not about it",
    "unwatched": f"none is needed: nobody watches the route now, and {_IN_FULL}",
    "uncertified": "NONE: the policy stops runs, and no test vouches for what that costs",
}
_AVAILABILITY: Final = (
    '; under load a level that is not certified any more may act instead (on_fallback = "availability_first")'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteGuarantee:
    state: State
    claim: Guarantee | None = None  # state "certified"
    average: Average | None = None  # state "budgeted"
    why: str = ""  # of state "unwatched"
    sheds_safety: bool = False  # under load, an uncertified level may act where requests should run in full
    beside: tuple[str, ...] = ()  # experiments and rollouts that serve some requests otherwise

    @property
    def stops(self) -> bool:
        return self.state in STOPS

    @property
    def sentence(self) -> str:
        if self.claim is not None:
            result = sentence(self.claim)
        elif self.average is not None:
            result = average_sentence(self.average)
        else:
            result = _SENTENCES[self.state] + (_AVAILABILITY if self.sheds_safety else "")
            result += f" ({self.why})" if self.why else ""
        if self.beside and self.state not in ("off", "observe", "killed", "candidate"):
            result = f"{result.rstrip('.')}. It is not about requests that draw an arm of {', '.join(self.beside)}."
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class GuaranteeInputs:
    name: str
    settings: Route
    epoch: Epoch | None = None  # the latest; None: no worker has started
    publication: Publication | None = None  # of this epoch, as published; None: none
    pause: Pause | None = None
    holding: ActiveOverrides = NO_OVERRIDES  # active overrides
    setup: str | None = None  # the route's present setup; None: not known, and not compared
    killed: bool = False
    unwatched: str = ""  # why the lease of the certificate is over; "": it is not, or that is not known
    unread: bool = False  # the log was unreadable for too long, and nothing acts
    unreadable: bool = False  # too few answers can be extracted, and nothing may act
    classes: Mapping[str, int] = field(default_factory=dict)  # audits by class, from `monitor`
    beside: tuple[str, ...] = ()


def guarantee_of(one: GuaranteeInputs) -> RouteGuarantee:
    route = one.settings
    made = effective_publication(one.publication, 0 if one.epoch is None else one.epoch.number, one.holding)
    budget = one.holding.budget(route.max_em_drop)
    state = _state(one, made, budget)
    if state not in ("certified", "budgeted") or made is None:
        falls_back = route.on_fallback == "availability_first" and route.is_learned and one.epoch is not None
        sheds = falls_back and state in ("paused", "burst", "searching", "void")
        return RouteGuarantee(state=state, sheds_safety=sheds, beside=one.beside)
    if one.unwatched:
        return RouteGuarantee(state="unwatched", why=one.unwatched, beside=one.beside)
    scorer = scorer_label(route.scorer)
    evidence, disagreeing = made.evidence, made.evidence.n_disagreeing
    labelled = evidence.n_gained > 0 or (disagreeing is not None and evidence.n_lost < disagreeing + evidence.n_pending)
    labels: Labels = "labelled" if labelled else "label-free"
    if made.spending is not None and state == "budgeted":
        average = Average(
            route=one.name,
            scorer=scorer,
            max_em_drop=budget,
            level=_level(made, one.holding),
            account=made.spending,
            labels=labels,
        )
        return RouteGuarantee(state=state, beside=one.beside, average=average)
    # The charge for finishing has its own confidence, and risks add up.
    at_risk = FIDELITY_RISK if route.kind == "reasoning" and not made.arm else 0.0
    at_risk += AT_RISK if evidence.judge_charge else 0.0
    claim = Guarantee(
        route=one.name,
        scorer=scorer,
        max_em_drop=budget,
        confidence=round((evidence.confidence or 0) - at_risk, 6),
        n_window=evidence.n_audits,
        clusters=describe_clusters(evidence),
        requests=request_window(evidence),
        labels=labels,
        detection=_detection(route, budget, made, labelled=labelled),
        classes=one.classes,
        what=f"asked with {made.arm}" if made.arm else "at the active level",
        exposure=made.exposure,
    )
    return RouteGuarantee(state=state, beside=one.beside, claim=claim)


def _state(one: GuaranteeInputs, made: Publication | None, budget: float) -> State:
    route = one.settings
    rests: tuple[tuple[bool, State], ...] = (
        (route.mode == "off", "off"),
        (one.killed, "killed"),
        (route.mode == "observe", "observe"),
        (one.unread, "unread"),
        (one.pause is not None, "paused"),
        (one.holding.observe is not None or one.holding.ceiling == 0, "held"),
        (one.unreadable, "unreadable"),
    )
    for holds, state in rests:
        if holds:
            return state
    proved = route.certifies_itself and made is not None and covers(route, budget, one.setup, made)
    if made is None or not proved:
        return _unproved(one, made)
    if made.spending is not None and _level(made, one.holding) > made.spending.floor:
        return "budgeted"
    return "certified" if made.certified else "budgeted"


def _unproved(one: GuaranteeInputs, made: Publication | None) -> State:
    route = one.settings
    if route.uncertified and (route.arms or route.policy.get("policy", "never") != "never"):
        return "uncertified"
    if not route.certifies_itself:
        return "idle"
    if one.epoch is None:
        return "unattended"
    if made is None or one.publication is None:
        return "burst"
    return "void" if one.publication.level and one.publication.may_act else "searching"


def covers(route: Route, max_em_drop: float, setup: str | None, made: Publication) -> bool:
    """Whether a certificate covers the route's guarantee and setup; a `setup` of None is not compared."""
    if not made.may_act or made.level < 1:
        return False
    if made.spending is not None and route.promise != "budgeted":
        return False  # the owner has required a certificate since
    if made.arm and made.arm not in route.arms:
        return False
    keeps = proves(made.evidence, max_em_drop=max_em_drop, confidence=route.confidence)
    return keeps and setup in (None, made.setup)


def effective_publication(made: Publication | None, epoch: int, holding: ActiveOverrides) -> Publication | None:
    """The publication that is served: the newest, or a pin of this epoch within the present certificate."""
    pin = holding.pin
    if pin is None or pin.pinned is None or made is None or not (made.level and made.may_act):
        return made
    if pin.pinned.epoch != epoch:
        return replace(made, level=0, certified=False)
    return pin_publication(made, pin.pinned)


def pin_publication(made: Publication, publication: Publication) -> Publication:
    """The earlier `publication` of the same epoch, with the restrictions of the newest one, `made`."""
    if publication.arm and publication.level > made.level:
        return made
    level = min(publication.level, made.level) if publication.fit == made.fit else publication.level
    share = max(made.share, 1 - publication.exposure)  # it is proved for no more than its own part of the requests
    classes = dict(publication.classes)
    for name, most in made.classes:  # present restrictions of classes apply to it, too
        classes[name] = min(most, classes.get(name, most))
    return replace(publication, level=level, share=share, classes=tuple(sorted(classes.items())))


def request_window(evidence: EvidenceSummary) -> tuple[int, int] | None:
    """The numbers of the first and the last request of a certificate's evidence; None: not known."""
    if evidence.window_start is None or evidence.window_end is None:
        return None
    return ceil(evidence.window_start), ceil(evidence.window_end) - 1


def _level(made: Publication, holding: ActiveOverrides) -> int:
    return made.level if holding.ceiling is None else min(made.level, holding.ceiling)


def _detection(route: Route, budget: float, made: Publication, *, labelled: bool) -> str:
    seen = made.evidence
    if seen.n_disagreeing is None or not seen.n_audits or not made.share or made.share >= 1:
        return ""
    noticed = max(NOTICED_DROP, NOTICED_BUDGETS * budget)
    law = detection_law(
        min(MOST_DROP, noticed / made.exposure),
        max_em_drop=min(MOST_DROP, budget / made.exposure),
        reference=Reference(n_disagreeing=seen.n_disagreeing, n_lost=seen.n_lost, n=seen.n_audits),
        audit_share=made.share if made.exposure < 1 else route.later_audit_share,
        cap=route.most_audit_share,
        labels=labelled,
    )
    return str(replace(law, drop=noticed))
