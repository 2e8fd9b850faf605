"""A route as it serves requests: what its settings build, what its publication lets act, and what people hold.

What serves is a fixed policy, the levels of a learned version, or a certified effort. It is made once for each
publication (`serving/deploy.py`). For a request it is narrowed to what its class may get, and then placed at the level
that the load asks for. No step raises what was published.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal, TypeAlias

import msgspec

from suffice.agent.plan import ClassPlan
from suffice.assurance.load_level import Admission
from suffice.episode.rounds import Returning
from suffice.policy.base import Policy, version_of
from suffice.policy.folded_version import prompt_fold
from suffice.policy.protocol import returning
from suffice.policy.rules import Never
from suffice.review.holds import NO_OVERRIDES, ActiveOverrides, lowest
from suffice.review.route_guarantee import GuaranteeInputs, RouteGuarantee, guarantee_of
from suffice.scoring.scorer import Scorer
from suffice.settings import Route
from suffice.store.routes.deployments import NOTHING, RouteDeployment
from suffice.types import Findings, Promise
from suffice.upstream.drivers import allows_probes

_EVIDENCE = ("kind", "model", "samples", "wave", "effort", "budget_tokens", "finish_unclosed", "embeddings")

CLASS_HELD: Final = "its class runs in full"  # by an override of one class

# What vouches for the stops: a certificate, the mean drop of a budgeted promise, or nothing ("": they act only if the
# owner has written `uncertified`; "fallback": they act as the safer level of a fallback).
Voucher: TypeAlias = Literal["certificate", "budget", "fallback", ""]

NEVER: Final = Never()


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPolicy:
    """One policy at every load: the owner's, an experiment's, a rollout's, or that of a level which the load chose."""

    policy: Policy
    version: str
    needs: tuple[str, ...]  # signals to be computed
    voucher: Voucher = ""
    ceiling: int | None = None  # for every class; 0: it stops nothing
    begins_anew: bool = False  # another model answers than in the evidence, so every request is an audit
    arm: ClassVar[str] = ""

    @property
    def may_stop(self) -> bool:
        return self.policy is not NEVER

    @property
    def has_evidence(self) -> bool:
        return self.voucher == "certificate"

    def narrowed(self, ceiling: int | None, question_key: str) -> FixedPolicy:  # noqa: ARG002 - it has no folds
        return self.capped(ceiling)

    def capped(self, ceiling: int | None) -> FixedPolicy:
        return replace(self, voucher="") if ceiling == 0 else self

    def placed(self, place: Admission, pin: int | None) -> FixedPolicy:  # noqa: ARG002 - it has no levels
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The policies of a learned version, by fold of the prompt and by level; level 0 never stops."""

    folds: tuple[Sequence[Policy], ...]
    version: str
    needs: tuple[str, ...]
    voucher: Voucher = "certificate"
    floor: int | None = None  # budgeted mode: the highest certified level; None: certified mode
    ceiling: int | None = None  # for every class, or for the class of one prompt; None: no limit
    fold: int = 0  # of the prompt
    policy: ClassVar[Policy] = NEVER  # until a level is chosen
    begins_anew: ClassVar[bool] = False
    has_evidence: ClassVar[bool] = True
    may_stop: ClassVar[bool] = True
    arm: ClassVar[str] = ""

    @property
    def n_levels(self) -> int:
        return len(self.folds[self.fold])

    def narrowed(self, ceiling: int | None, question_key: str) -> Levels:
        return replace(self, ceiling=ceiling, fold=prompt_fold(question_key, len(self.folds)))

    def capped(self, ceiling: int | None) -> Levels:
        return replace(self, ceiling=lowest(ceiling, self.ceiling))

    def placed(self, place: Admission, pin: int | None) -> Serving:
        """Load does not move a pinned level; a pin has no effect while nothing is certified."""
        if place.level is None:
            return self
        wanted = place.level if pin is None or not place.certified else min(pin, self.n_levels - 1)
        level = wanted if self.ceiling is None else min(wanted, self.ceiling)
        if not place.certified:
            voucher: Voucher = "fallback"
        elif self.floor is not None and level > self.floor:
            voucher = "budget"
        else:
            voucher = self.voucher
        policy, version = self.folds[self.fold][level], f"{self.version}@{level}"
        return FixedPolicy(policy=policy, version=version, needs=self.needs, voucher=voucher)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedArm:
    """A certified effort or budget, with which the upstream is asked; no run is stopped."""

    arm: str  # as outcomes name it
    arms: tuple[str, ...]  # of the route: number k is level k
    version: str
    needs: tuple[str, ...]
    ceiling: int | None = None  # for every class; None: no limit
    policy: ClassVar[Policy] = NEVER
    voucher: ClassVar[Voucher] = "certificate"
    begins_anew: ClassVar[bool] = False
    has_evidence: ClassVar[bool] = True
    may_stop: ClassVar[bool] = True  # as the effort shortens the thought

    def narrowed(self, ceiling: int | None, question_key: str) -> Serving:  # noqa: ARG002 - it has no folds
        return self.capped(ceiling)

    def capped(self, ceiling: int | None) -> Serving:
        """Return the arm of this level in place of a higher one; 0: full runs, None: as it is."""
        if ceiling == 0:
            return in_full(self)
        if ceiling is None or self.arm not in self.arms[ceiling:]:
            return self
        lower = self.arms[ceiling - 1]
        return replace(self, arm=lower, version=lower)

    def placed(self, place: Admission, pin: int | None) -> Serving:  # noqa: ARG002 - a pin is another publication
        return self.capped(place.level)


Serving: TypeAlias = FixedPolicy | Levels | CertifiedArm


def in_full(serving: Serving) -> FixedPolicy:
    """Return what serves in its place where nothing vouches for it. A version's name stays in the record."""
    policy = serving.policy
    return FixedPolicy(policy=policy, version=serving.version, needs=serving.needs)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltRoute:
    name: str
    settings: Route
    scorer: Scorer
    serving: Serving
    proposer: Policy | None = None  # only checkpoints where it would stop are probed; None: all are
    findings: Findings | None = None  # of `suffice doctor` on the upstream; None: none
    setup: str = ""  # see `route_setup`
    active: RouteDeployment = NOTHING  # the control loop's publication
    holding: ActiveOverrides = NO_OVERRIDES
    refused: str | None = None  # why the route must not be enforced; None: it may
    unwatched: str = ""  # why the lease of its certificate is over (gateway/lease.py); "": it is not
    plan: ClassPlan | None = None  # the agent's for this prompt's class, of several draws; None: nothing to draw

    @property
    def certified(self) -> bool:
        return self.serving.voucher == "certificate"

    @property
    def promise(self) -> Promise:
        """The promise for which this request's level was chosen."""
        return "budgeted" if self.serving.voucher == "budget" else "certified"

    @property
    def floor(self) -> int | None:
        """Under a budgeted promise, the highest certified level; None: another promise."""
        return self.serving.floor if isinstance(self.serving, Levels) else None

    @property
    def acts(self) -> bool:
        vouched = self.serving.voucher or self.settings.uncertified
        return self.settings.mode == "enforce" and bool(vouched) and not self.is_held

    @property
    def is_held(self) -> bool:
        """Whether everything runs in full now, whatever is certified."""
        return self.refused is not None or self.holding.observe is not None or bool(self.unwatched)

    @property
    def may_stop(self) -> bool:
        """Whether runs that are no audits may be stopped: at level 0 of a learned version none is."""
        return self.acts and self.serving.may_stop

    @property
    def in_burst(self) -> bool:
        """Whether every request is an audit now."""
        return self.serving.begins_anew or (self.active.epoch is not None and self.active.in_burst)

    @property
    def pin(self) -> int | None:
        """The level that a person has pinned, in place of the one that the load asks for."""
        return None if self.holding.pin is None else self.holding.pin.level

    @property
    def remaining_ratio(self) -> float | None:
        """What stops of the published level cut off, over what runs that came as far have left; None: unknown."""
        made = self.active.publication
        return None if made is None else made.evidence.remaining_ratio

    @property
    def returning(self) -> Returning:
        return returning(self.serving.policy)

    @property
    def may_probe(self) -> bool:
        """Return whether audits may be probed: only where the cost of a probe is known."""
        probe = self.settings.probe
        return probe is not None and (probe.verified_by == "owner" or allows_probes(self.findings))

    def reads(self, fold: str) -> bool:
        """Return whether the policy or the proposer asks for this signal."""
        proposers = () if self.proposer is None else self.proposer.needs
        needs = getattr(self.serving.policy, "needs", ())  # a broken policy fails where it decides
        return any(need.partition("(")[0] == fold for need in (*needs, *proposers))

    def served_by(self, serving: Serving) -> BuiltRoute:
        return self if serving is self.serving else replace(self, serving=serving)

    def placed(self, place: Admission) -> BuiltRoute:
        """Return the route for a request, at the level that the load asks for."""
        return self.served_by(self.serving.placed(place, self.pin))

    def in_full(self) -> BuiltRoute:
        return self.served_by(in_full(self.serving))

    def for_request(self, question_key: str, model: str, query_class: str = "") -> BuiltRoute:
        """Return the route for one prompt: with the model not trained on it, and in full where there is no evidence."""
        if not self.serving.has_evidence:
            if self.holding.classes.get(query_class) == 0:
                return replace(self, holding=replace(self.holding, observe=CLASS_HELD))
            return self
        made = self.active.publication or self.active.last
        if made is None or all(one[0] != self._named(model) for one in made.upstream):
            return self.in_full()
        own, plan = dict(made.classes).get(query_class), self.plan
        ceiling = lowest(own, self.holding.ceiling_of(query_class), self.serving.ceiling)
        if self.active.plan is not None:
            plan = self.active.plan.of_class(query_class)
            if plan is not None and len(plan.draws) == 1:
                ceiling, plan = lowest(ceiling, plan.draws[0].ceiling), plan if plan.draws[0].settings else None
        narrowed = self.serving.narrowed(ceiling, question_key)
        if narrowed is self.serving and plan is self.plan:
            return self
        return replace(self, serving=narrowed, plan=plan if narrowed.has_evidence else None)

    def _named(self, model: str) -> str:
        """Return the name in the evidence of a model that a request names; a loop of the caller's own names none."""
        return "" if self.settings.kind == "rounds" else model

    def answers_as_known(self, model: str, named: str | None, fingerprint: str | None) -> bool:
        """Return whether the answering model matches the evidence, as far as both are known."""
        made = self.active.publication
        if made is None or not self.serving.has_evidence:
            return True
        known = [one for one in made.upstream if one[0] == self._named(model)]
        return not known or any(
            (not one[1] or named is None or one[1] == named) and (not one[2] or fingerprint in (None, one[2]))
            for one in known
        )

    def without_evidence(self, model: str) -> BuiltRoute:
        """Return the route in full for requests that name this model, or for all where the evidence has no other."""
        made = self.active.publication
        others = () if made is None else tuple(one for one in made.upstream if one[0] != self._named(model))
        if made is None or not others:
            policy = self.serving.policy
            return self.served_by(replace(in_full(self.serving), version=version_of(policy), begins_anew=True))
        return replace(self, active=replace(self.active, publication=replace(made, upstream=others)))

    def guarantee(
        self,
        *,
        killed: bool = False,
        unread: bool = False,
        unwatched: str = "",
        classes: Mapping[str, int] | None = None,
        beside: tuple[str, ...] = (),
    ) -> RouteGuarantee:
        """Return the guarantee of the route, or of one request if this is the route for that request.

        unread     the log has been unreadable for too long
        unwatched  why the lease of the certificate is over; "": it is not
        classes    audits by query class
        beside     experiments and rollouts that serve a part of the requests differently
        """
        made, serving = self.active.publication, self.serving
        if made is not None and serving.arm:  # that of this request, which is certified as well
            made = replace(made, arm=serving.arm)
        inputs = GuaranteeInputs(
            name=self.name,
            settings=self.settings,
            epoch=self.active.epoch,
            publication=made,
            pause=self.active.pause,
            holding=self.holding,
            unwatched=self.unwatched or unwatched,
            setup=self.setup,
            killed=killed,
            unread=unread,
            unreadable=self.refused is not None,
            classes=classes or {},
            beside=beside,
        )
        promised, risks = guarantee_of(inputs), serving.voucher == "fallback"
        if promised.state == "held" and self.holding.observe == CLASS_HELD:
            return RouteGuarantee(state="uncovered")  # the rest of the route is not held
        if promised.state not in ("certified", "budgeted"):
            return RouteGuarantee(state="uncertified") if risks and not killed and self.acts else promised
        if serving.voucher not in ("certificate", "budget"):
            return RouteGuarantee(state="uncertified" if risks else "uncovered")
        if made is not None and made.fit and not serving.version.startswith(made.fit):
            return RouteGuarantee(state="candidate")
        return promised


def route_setup(settings: Route, scorer: str, url_key: str, *, probes: bool) -> str:
    """Return a digest of the settings that a route's evidence depends on; evidence holds only for the same digest."""
    kept = {name: getattr(settings, name) for name in (*_EVIDENCE, "scorer", "steps", "probe")}
    if settings.kind != "rounds" and set(settings.reply_forms) != {"text"}:
        kept["reply_forms"] = sorted(set(settings.reply_forms))
    written = msgspec.json.encode([kept, url_key, probes], order="deterministic")
    return f"{settings.kind}, scorer {scorer}, {hashlib.blake2b(written, digest_size=4).hexdigest()}"
