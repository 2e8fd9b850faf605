"""A route as it serves requests, from its settings, its publication, its overrides and its running variants.

A publication that does not fit the settings, the promise and the epoch, or cannot be read, gives level 0: full runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from suffice.agent.mixture import mixture_of
from suffice.agent.plan import AGENT, FULL, AgentPlan, ClassPlan, with_settings
from suffice.episode.rounds import Returning
from suffice.errors import BadRequest, ConfigError
from suffice.policy.base import Policy, build_policy, version_of
from suffice.policy.folded_version import FoldedVersion, prompt_fold
from suffice.policy.protocol import returning
from suffice.policy.rules import Never
from suffice.review.holds import NO_OVERRIDES, ActiveOverrides, lowest
from suffice.review.route_guarantee import GuaranteeInputs, RouteGuarantee, covers, effective_publication, guarantee_of
from suffice.rollout.assign import keyed
from suffice.rollout.experiment import Arm, RunningExperiment, Units, draw_arms, draw_by_odds, with_arm
from suffice.rollout.stages import State, place
from suffice.scoring.scorer import Scorer
from suffice.settings import Route, Upstream
from suffice.signals.observe import Observer
from suffice.store.routes.deployments import NOTHING, RouteDeployment
from suffice.store.routes.rollouts import own_version
from suffice.telemetry import LOG, Metrics
from suffice.types import ArmDraw, Findings, Pause, Promise, Publication, ReplyForm
from suffice.upstream.drivers import (
    STOPS,
    allows_probes,
    are_clients,
    continuing_methods,
    finish_methods,
    has_field,
    reply_form,
    stop_words,
)

# Fields with which a stop could change the requested result, by the counted reason: OpenAI's, then
# their equivalents in llama.cpp, vLLM, SGLang and OpenRouter.
_BLOCKING_BY_REASON: Mapping[str, str] = {
    "tools": "functions web_search_options plugins",
    "response_format": "grammar",  # llama.cpp constrains the thought by it, too
    "logprobs": "n_probs prompt_logprobs",
    "stop": "ignore_eos",
    "modalities": "modalities audio",
    "prediction": "prediction",
    "n": "best_of use_beam_search",
}
BLOCKING = {name: reason for reason, names in _BLOCKING_BY_REASON.items() for name in names.split()}
_REASON_OF_FORM: Mapping[ReplyForm, str] = {"text": "tools", "json": "response_format", "tools": "tools"}
_EVIDENCE = ("kind", "model", "samples", "wave", "effort", "budget_tokens", "finish_unclosed", "embeddings")
TEXT_PARTS = ("text", "refusal")  # parts of a message that chat templates write as text
MOST_VARIANTS = 256  # built variants in memory; beyond that the cache is cleared

CLASS_HELD: Final = "its class runs in full"  # by an override of one class


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltRoute:
    name: str
    settings: Route
    scorer: Scorer
    policy: Policy
    policy_version: str
    certified: bool
    needs: tuple[str, ...]  # signals to be computed
    proposer: Policy | None = None  # only checkpoints where it would stop are probed; None: all are
    findings: Findings | None = None  # of `suffice doctor` on the upstream; None: none
    refused: str | None = None  # why the route must not be enforced; None: it may
    setup: str = ""  # see `route_setup`
    levels: Sequence[Policy] = ()  # the policy at each level, 0 never stops; (): one policy without levels
    folds: tuple[Sequence[Policy], ...] = ()  # `levels` by fold of the prompt; (): no active learned version
    active: RouteDeployment = NOTHING  # the control loop's publication
    in_burst: bool = False  # every request is an audit now
    arm: str = ""  # the certified effort or budget for this request, as outcomes name it; "": none
    ceiling: int | None = None  # the highest level for this prompt's class; None: no limit
    any_level: int | None = None  # the highest level for every class, whose mixture is not tested; None: it is
    floor: int | None = None  # budgeted mode: the highest certified level; None: certified mode
    promise: Promise = "certified"  # for which this request's level was chosen
    risks: bool = False  # during a fallback, an uncertified level acts instead of turning requests away
    holding: ActiveOverrides = NO_OVERRIDES
    unwatched: str = ""  # why the lease of its certificate is over (gateway/lease.py); "": it is not
    plan: ClassPlan | None = None  # the agent's for this prompt's class, of several draws; None: nothing to draw

    @property
    def acts(self) -> bool:
        vouched = self.certified or self.promise == "budgeted" or self.settings.uncertified or self.risks
        return self.settings.mode == "enforce" and vouched and not self.is_held

    @property
    def is_held(self) -> bool:
        """Whether everything runs in full now, whatever is certified."""
        return self.refused is not None or self.holding.observe is not None or bool(self.unwatched)

    def pinned(self, level: int, *, most: int) -> int:
        """Return the level that a person has pinned, `most` at most, or else the one that the load asks for."""
        pin = self.holding.pin
        return level if pin is None or pin.level is None else min(most, pin.level)

    def _named(self, model: str) -> str:
        """Return the name in the evidence of a model that a request names; a loop of the caller's own names none."""
        return "" if self.settings.kind == "rounds" else model

    @property
    def may_stop(self) -> bool:
        """Whether runs that are no audits may be stopped: at level 0 of a learned version none is."""
        return self.acts and not (self.levels and self.policy is self.levels[0])

    @property
    def remaining_ratio(self) -> float | None:
        """What stops of the published level cut off, over what runs that came as far have left; None: unknown."""
        made = self.active.publication
        return None if made is None else made.evidence.remaining_ratio

    @property
    def is_proved(self) -> bool:
        made = self.active.publication
        return self.certified and made is not None and made.is_owned

    def for_request(self, question_key: str, model: str, query_class: str = "") -> BuiltRoute:
        """Return the route for one prompt: with the model not trained on it, and in full where there is no evidence."""
        if not (self.folds or self.arm or self.is_proved):
            if self.holding.classes.get(query_class) == 0:
                return replace(self, holding=replace(self.holding, observe=CLASS_HELD))
            return self
        made = self.active.publication or self.active.last
        if made is None or all(one[0] != self._named(model) for one in made.upstream):
            return replace(self, certified=False, folds=(), levels=(), arm="")
        own, plan = dict(made.classes).get(query_class), self.plan
        ceiling = lowest(own, self.holding.ceiling_of(query_class), self.any_level)
        if self.active.plan is not None:
            plan = self.active.plan.of_class(query_class)
            if plan is not None and len(plan.draws) == 1:
                ceiling, plan = lowest(ceiling, plan.draws[0].ceiling), plan if plan.draws[0].settings else None
        return self._with_ceiling(ceiling, question_key, plan)

    def _with_ceiling(self, ceiling: int | None, question_key: str, plan: ClassPlan | None) -> BuiltRoute:
        if not self.folds:
            if ceiling is None and plan is self.plan:
                return self
            return replace(self.at_arm(ceiling), ceiling=ceiling, plan=plan if ceiling != 0 else None)
        levels = self.folds[prompt_fold(question_key, len(self.folds))]
        return replace(self, levels=levels, ceiling=ceiling, plan=plan)

    def at_arm(self, level: int | None) -> BuiltRoute:
        """Return the route with the arm of this level in place of a higher one; 0: in full, None: as it is."""
        if level == 0:
            return replace(self, certified=False, arm="")
        arms = self.settings.arms
        if level is None or self.arm not in arms[level:]:
            return self
        return replace(self, arm=arms[level - 1], policy_version=arms[level - 1])

    def answers_as_known(self, model: str, named: str | None, fingerprint: str | None) -> bool:
        """Return whether the answering model matches the evidence, as far as both are known."""
        made = self.active.publication
        if made is None or not (self.folds or self.arm or self.is_proved):
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
            version = version_of(self.policy)
            return replace(self, certified=False, folds=(), arm="", in_burst=True, policy_version=version)
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
        made = self.active.publication
        if made is not None and self.arm:  # that of this request, which is certified as well
            made = replace(made, arm=self.arm)
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
        promised = guarantee_of(inputs)
        if promised.state == "held" and self.holding.observe == CLASS_HELD:
            return RouteGuarantee(state="uncovered")  # the rest of the route is not held
        if promised.state not in ("certified", "budgeted"):
            return RouteGuarantee(state="uncertified") if self.risks and not killed and self.acts else promised
        if not (self.certified or self.promise == "budgeted"):
            return RouteGuarantee(state="uncertified" if self.risks else "uncovered")
        if made is not None and made.fit and not self.policy_version.startswith(made.fit):
            return RouteGuarantee(state="candidate")
        return promised

    @property
    def returning(self) -> Returning:
        return returning(self.policy)

    def reads(self, fold: str) -> bool:
        """Return whether the policy or the proposer asks for this signal."""
        proposers = () if self.proposer is None else self.proposer.needs
        needs = getattr(self.policy, "needs", ())  # a broken policy fails where it decides
        return any(need.partition("(")[0] == fold for need in (*needs, *proposers))

    @property
    def may_probe(self) -> bool:
        """Return whether audits may be probed: only where the cost of a probe is known."""
        probe = self.settings.probe
        return probe is not None and (probe.verified_by == "owner" or allows_probes(self.findings))


def route_setup(settings: Route, scorer: str, url_key: str, *, probes: bool) -> str:
    """Return a digest of the settings that a route's evidence depends on; evidence holds only for the same digest."""
    kept = {name: getattr(settings, name) for name in (*_EVIDENCE, "scorer", "steps", "probe")}
    if settings.kind != "rounds" and set(settings.reply_forms) != {"text"}:
        kept["reply_forms"] = sorted(set(settings.reply_forms))
    written = msgspec.json.encode([kept, url_key, probes], order="deterministic")
    return f"{settings.kind}, scorer {scorer}, {hashlib.blake2b(written, digest_size=4).hexdigest()}"


# --------------------------------------------------------------------------- which requests are governed


def n_samples(route: BuiltRoute, options: Mapping[str, Any]) -> int:
    if route.settings.kind != "samples":
        return 1
    samples, limit = int(options.get("samples") or route.settings.samples), route.settings.max_extra_calls + 1
    if samples > limit:
        message = f"suffice.samples: got {samples}; at most {limit} on this route"
        raise BadRequest(message, param="suffice.samples", code="too_many_samples")
    return samples


def ungoverned(
    route: BuiltRoute, body: Mapping[str, Any], options: Mapping[str, Any], upstream: Upstream | None
) -> str | None:
    """Return why this request must pass through unchanged, or None if it is governed."""
    kind, messages = route.settings.kind, body.get("messages")
    if route.settings.mode == "off":
        return "off"
    if kind == "rounds":
        return "rounds"
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return "messages"
    if body.get("n") not in (None, 1) or isinstance(body.get("n"), bool):
        return "n"
    if blocking := [reason for name, reason in BLOCKING.items() if name in body and has_field(body, name)]:
        return blocking[0]
    form = reply_form(body)
    if form not in route.settings.reply_forms or not are_clients(body.get("tools")):
        return _REASON_OF_FORM[form]
    if kind == "samples":
        return "samples=1" if n_samples(route, options) == 1 else None
    return _hindrance(route, body, messages, upstream)


def _hindrance(
    route: BuiltRoute, body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], upstream: Upstream | None
) -> str | None:
    """Return why the thought of this request cannot be cut, or could not without changing its reply; None: it can."""
    if any(_shows_more_than_text(m.get("content")) for m in messages):
        return "images"  # continuing a thought needs a prompt of text only
    if messages[-1].get("role") == "assistant" or body.get("continue_final_message"):
        return "prefill"  # the answer begins with the client's text, which may hold a thought
    return None if upstream is None else _unkept(route, body, upstream)


def _unkept(route: BuiltRoute, body: Mapping[str, Any], upstream: Upstream) -> str | None:
    """Return what a stopped reply could not keep of the request; None: it keeps everything."""
    tags, form = (upstream.think_open, upstream.think_close), reply_form(body)
    if any(word in tag or tag in word for word in stop_words(body) for tag in tags):
        return "stop"  # it asks for the thought alone
    findings = route.findings
    if finish_methods(upstream, body, findings) or route.settings.arms or not finish_methods(upstream, {}):
        return None
    if continuing_methods(upstream, body, findings):
        return "logprobs"
    stopless = {name: value for name, value in body.items() if name != "stop" and name not in STOPS}
    return "stop" if continuing_methods(upstream, stopless, findings) else _REASON_OF_FORM[form]


def _shows_more_than_text(content: Any) -> bool:
    return isinstance(content, list) and any(
        not isinstance(part, dict) or part.get("type") not in TEXT_PARTS for part in content
    )


# --------------------------------------------------------------------------- what is published and held


class LevelPolicies(Sequence[Policy]):
    """The policy of one fold at each level, built on first use: of about forty, one is active."""

    def __init__(self, version: FoldedVersion, fold: int, level: int) -> None:
        self._models, self._thresholds = version.models[fold], version.levels[fold][:level]
        self._built: dict[int, Policy] = {0: Never()}

    def __len__(self) -> int:
        return len(self._thresholds) + 1

    def __getitem__(self, level: Any) -> Any:
        """Raise IndexError for a level out of range."""
        policy = self._built.get(level)
        if policy is None:
            threshold = self._thresholds[level - 1]
            table = {"policy": "learned", "model": self._models, "threshold": threshold, "on_hopeless": "stop"}
            # Another thread may build the same policy, so store it only when complete.
            policy = self._built[level] = build_policy(table)
        return policy


def observe_route(base: BuiltRoute, why: str) -> BuiltRoute:
    return replace(base, holding=replace(NO_OVERRIDES, observe=why))


def deploy_route(base: BuiltRoute, held: RouteDeployment, version: FoldedVersion | None = None) -> BuiltRoute:
    """Raise ConfigError for a version that cannot be served."""
    settings, made = base.settings, held.publication
    in_burst = held.epoch is not None and held.in_burst and not settings.is_paired
    waiting = replace(base, active=held, in_burst=in_burst)
    if made is None or not held.level or not covers(settings, settings.max_em_drop, base.setup, made):
        return waiting
    # The loop does not test where the agent takes an arm from a class (docs/reference/paired-calls.md).
    any_level = _untested_level(made, None if settings.is_paired else held.plan, base.holding)
    if settings.is_paired and made.arm in settings.arms[made.level - 1 : made.level]:
        return replace(waiting, certified=True, arm=made.arm, policy_version=made.version, any_level=any_level)
    if settings.is_owned and made.version == own_version(settings).address:  # exactly the certified policy
        return replace(waiting, certified=True, any_level=any_level)
    if settings.is_paired or settings.is_owned or version is None:
        return waiting
    if version.address != made.fit or made.level >= version.n_levels:
        raise ConfigError(f"routes.{base.name}: version {made.fit} does not have what was published")
    folds = tuple(LevelPolicies(version, fold, made.level) for fold in range(len(version.models)))
    needed = tuple(dict.fromkeys(need for fold in folds for need in fold[made.level].needs))
    needs = (*(need for need in base.needs if need not in needed), *needed)
    Observer(needs, base.settings.kind)  # fails here, not in a request, for an unknown signal
    floor = None if made.spending is None else made.spending.floor
    served = replace(waiting, certified=True, folds=folds, policy_version=made.fit, needs=needs)
    return replace(served, floor=floor, any_level=any_level)


def _untested_level(made: Publication, plan: AgentPlan | None, holding: ActiveOverrides) -> int | None:
    """Return the highest level while classes get others than the publication was tested with; None: they do not."""
    mixture = mixture_of(holding.classes, plan, level=made.level)
    return None if not mixture or mixture == made.mixture else made.any_level


def apply_pin(held: RouteDeployment, holding: ActiveOverrides) -> RouteDeployment:
    if held.pause is not None or held.publication is None:
        return held
    made = effective_publication(held.publication, held.n_epochs, holding)
    return held if made is held.publication else replace(held, publication=made)


def apply_pause(holding: ActiveOverrides, pause: Pause | None) -> ActiveOverrides:
    """Return the overrides with the pause added as "observe", for routes without a certificate to withdraw."""
    if pause is None or holding.observe is not None:
        return holding
    return replace(holding, observe=f"paused by {pause.author}: {pause.reason}")


# --------------------------------------------------------------------------- experiments and rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTrial:
    state: State
    policy: Mapping[str, object] = field(default_factory=dict)  # the candidate's table for `build_policy`
    models: FoldedVersion | None = None  # or a learned candidate, up to the level of `state`


@dataclass(frozen=True, slots=True)
class RunningVariants:
    experiments: tuple[RunningExperiment, ...] = ()
    trials: Mapping[str, RolloutTrial] = field(default_factory=dict)  # by route, at most one each
    standing: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # of finished rollouts, by route


@dataclass(slots=True, kw_only=True)
class Variants:
    """One gateway's experiments and rollouts. A variant that cannot be built draws no arm, so none is logged.

    Arms are drawn by keyed hash: retries, replicas and restarts draw the same.
    """

    salt: str
    metrics: Metrics
    running: RunningVariants = field(default_factory=RunningVariants)
    _built: dict[tuple[str, str], BuiltRoute | None] = field(default_factory=dict)

    def place(
        self, route: BuiltRoute, units: Callable[[], Units], question: str = ""
    ) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        """Return the route for a request and its drawn arms; the same object if nothing varies it."""
        varies = self.running.experiments or route.name in self.running.trials or route.name in self.running.standing
        if not varies and route.plan is None:
            return route, ()
        try:
            return self._place(route, units(), question)
        except Exception as error:  # noqa: BLE001 - a broken experiment costs its own evidence, never an answer
            LOG.error("routes.%s: no arm could be assigned (%s)", route.name, type(error).__name__)
            self.metrics.inc("suffice_failopen_total", "arms")
            return route, ()

    def audit_share(self, route: str) -> float:
        trial = self.running.trials.get(route)
        return 0.0 if trial is None else trial.state.audit_share or 0.0

    def _place(self, route: BuiltRoute, units: Units, question: str) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        served, drawn = self._with_rollout(route, units, question)
        if served is route and route.plan is not None:
            served, drawn = self._with_plan(route, route.plan, units["request"] or "")
        for one in draw_arms(self.running.experiments, route=route.name, units=units, salt=self.salt):
            arm = next(e for e in self.running.experiments if e.name == one.experiment).arm(one.arm)
            varied = self._with_arm(served, arm, f"{one.experiment}:{one.run}:{one.arm}")
            if varied is not None:
                served, drawn = varied, (*drawn, one)
        return served, drawn

    def _with_rollout(self, route: BuiltRoute, units: Units, question: str) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        standing, trial = self.running.standing.get(route.name), self.running.trials.get(route.name)
        if standing is not None:
            route = self._with_policy(route, standing) or route
        if trial is None or (trial.state.fit and not _is_comparable(route, trial.state)):
            return route, ()
        unit, share = units["conversation"] or "", trial.state.share
        placed = place(trial.state, unit, salt=self.salt)
        varied = self._candidate(route, trial, question) if placed.arm == "candidate" else route
        if placed.arm is None or varied is None:
            return route, ()
        others = (("candidate", share), ("control", share), ("", 1 - 2 * share)) if share < 1 else ()
        draw = ArmDraw(
            experiment=f"rollout {trial.state.rollout}",
            run=1,
            arm=placed.arm,
            propensity=placed.propensity,
            others=tuple(one for one in others if one[0] != placed.arm and one[1] > 0),
            unit=keyed(unit, salt=self.salt, purpose=b"experiment-unit", n_bytes=8).hex(),
        )
        return varied, (draw,)

    def _with_plan(self, route: BuiltRoute, plan: ClassPlan, unit: str) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        """Draw the settings and the level that the agent planned. Audits draw, too: they stand for what is served."""
        draw = draw_by_odds(
            {one.settings: one.share for one in plan.draws},
            unit,
            experiment=AGENT,
            run=route.active.n_plans,
            assignment=f"agent/{route.name}",
            salt=self.salt,
        )
        drawn = next(one for one in plan.draws if one.settings == draw.arm)
        settings = route.settings if drawn.settings == FULL else with_settings(route.settings, drawn.settings)
        served = replace(route, settings=settings, ceiling=lowest(route.ceiling, drawn.ceiling), plan=None)
        return served if served.folds else served.at_arm(served.ceiling), (draw,)

    def _candidate(self, route: BuiltRoute, trial: RolloutTrial, question: str) -> BuiltRoute | None:
        state, models = trial.state, trial.models
        if models is None:
            return self._with_policy(route, trial.policy)
        level = min(state.level, models.n_levels - 1)
        # It needs its own certificate and the route's; without either, every run goes to its end.
        version = f"{state.fit}@{level}"
        served = replace(
            route, levels=(), policy=Never(), certified=False, floor=None, risks=False, policy_version=version
        )
        if not level:
            return served
        name = f"{version}/{prompt_fold(question, len(models.models))}"
        built = self._built_with(route, models.policy(question, level), name)
        return None if built is None else replace(served, policy=built.policy, needs=built.needs, certified=True)

    def _with_arm(self, route: BuiltRoute, arm: Arm, name: str) -> BuiltRoute | None:
        settings = with_arm(route.settings, arm)
        if settings.policy != route.settings.policy:
            varied = self._with_policy(route, settings.policy, name)
            if varied is None:
                return None
            route = varied
        if arm.level is not None:
            route = replace(route, ceiling=lowest(arm.level, route.ceiling))
        # An audit runs in full under any arm, so its setup stays the route's.
        return replace(route, settings=settings) if settings is not route.settings else route

    def _with_policy(self, route: BuiltRoute, policy: Mapping[str, object], name: str = "") -> BuiltRoute | None:
        built = self._built_with(route, dict(policy), name or json.dumps(policy, sort_keys=True))
        if built is None:
            return None
        return replace(
            route,
            settings=msgspec.structs.replace(route.settings, policy=built.settings.policy),
            policy=built.policy,
            policy_version=built.policy_version,
            needs=built.needs,
            certified=False,
            folds=(),
            levels=(),
            risks=False,
        )

    def _built_with(self, route: BuiltRoute, policy: dict[str, object], name: str) -> BuiltRoute | None:
        key = route.name, name
        if key in self._built:
            return self._built[key]
        if len(self._built) >= MOST_VARIANTS:
            self._built.clear()
        built: BuiltRoute | None = None
        try:
            variant = build_policy(policy)
            needed = {need.partition("(")[0] for need in variant.needs}
            needs = (*(need for need in route.needs if need.partition("(")[0] not in needed), *variant.needs)
            Observer(needs, route.settings.kind)  # fails here, not in a request, for an unknown signal
            settings = msgspec.structs.replace(route.settings, policy=policy)
            built = replace(route, settings=settings, policy=variant, policy_version=version_of(variant), needs=needs)
        except Exception as error:  # noqa: BLE001 - a policy that crashes at load is not served
            LOG.error("routes.%s: a variant cannot be built (%s); it is not served", route.name, type(error).__name__)
            self.metrics.inc("suffice_failopen_total", "arms")
        self._built[key] = built
        return built


def _is_comparable(route: BuiltRoute, state: State) -> bool:
    """Return whether this request gets, unrestricted, the version that a learned candidate is compared with."""
    made = route.active.publication
    if made is None or made.fit != state.active or not (route.certified and route.levels):
        return False
    return route.ceiling is None and route.holding == NO_OVERRIDES and route.promise == "certified"
