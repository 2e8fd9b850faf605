"""Which route a request belongs to, and whether it is governed. Pure.

Whatever is not understood completely is not governed: it passes through byte for byte, with the
reason counted and visible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from suffice.episode.rounds import Returning
from suffice.errors import BadRequest
from suffice.learn.groups import prompt_fold
from suffice.policy.base import Policy
from suffice.policy.returning import returning
from suffice.review.holds import NO_OVERRIDES, InEffect, lowest
from suffice.review.route_guarantee import GuaranteeInputs, RouteGuarantee, guarantee_of
from suffice.scoring.base import Scorer
from suffice.settings import Route
from suffice.store.routes.in_force import NOTHING, InForce
from suffice.types import Findings, Promise
from suffice.upstream.drivers import allows_probes

# Fields under which a stop could change what the client asked for, and the reason that is counted: OpenAI's, then
# the names that llama.cpp, vLLM, SGLang and OpenRouter have for the same. A vote on samples could live with some of
# them (a sample is the client's request as it stands), but no scorer reads tool calls or JSON, so they pass there too.
BLOCKING: Mapping[str, str] = {
    "tools": "tools",
    "functions": "tools",
    "web_search_options": "tools",
    "plugins": "tools",
    "response_format": "response_format",
    "grammar": "response_format",
    "json_schema": "response_format",
    "structured_outputs": "response_format",
    "guided_json": "response_format",
    "guided_regex": "response_format",
    "guided_choice": "response_format",
    "guided_grammar": "response_format",
    "regex": "response_format",
    "ebnf": "response_format",
    "logprobs": "logprobs",
    "top_logprobs": "logprobs",
    "n_probs": "logprobs",
    "prompt_logprobs": "logprobs",
    "stop": "stop",
    "stop_token_ids": "stop",
    "stop_regex": "stop",
    "ignore_eos": "stop",
    "modalities": "modalities",
    "audio": "modalities",
    "prediction": "prediction",
    "best_of": "n",
    "use_beam_search": "n",
}
_EVIDENCE = ("kind", "model", "samples", "wave", "effort", "budget_tokens", "finish_unclosed", "embeddings")
# Parts of a message that a chat template writes out as text.
TEXT_PARTS = ("text", "refusal")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltRoute:
    """A route with its scorer and its policy, ready to serve."""

    name: str
    settings: Route
    scorer: Scorer
    policy: Policy
    policy_version: str
    certified: bool
    needs: tuple[str, ...]  # signals to compute
    findings: Findings | None = None  # what doctor saw at the upstream; None: nothing is known
    refused: str | None = None  # why it must not be enforced, whatever the settings say; None: it may
    setup: str = ""  # what evidence rests on, see `route_setup`
    levels: Sequence[Policy] = ()  # the policy at each level, 0 never stops; (): one policy, and no levels
    folds: tuple[Sequence[Policy], ...] = ()  # `levels` by fold of the prompt; (): nothing learned is in force
    in_force: InForce = NOTHING  # what the control loop has said of it
    in_burst: bool = False  # everything runs in full now, and is an audit
    arm: str = ""  # the effort or budget that is certified and in force, as outcomes name it; "": none
    ceiling: int | None = None  # the highest level for this prompt's class; None: its class is not held back
    floor: int | None = None  # budgeted mode: levels above it are certified by nothing; None: certified mode
    promise: Promise = "certified"  # by which this request's level was chosen
    risks: bool = False  # the brake holds, and its owner lets an uncertified level act rather than turn away
    holding: InEffect = NO_OVERRIDES  # what people hold on it for a while

    @property
    def acts(self) -> bool:
        vouched = self.certified or self.promise == "budgeted" or self.settings.uncertified or self.risks
        return self.settings.mode == "enforce" and vouched and self.refused is None and self.holding.observe is None

    @property
    def is_proved(self) -> bool:
        """Does its owner's own policy act, as a publication has proved it?"""
        made = self.in_force.publication
        return self.certified and made is not None and made.is_owned

    def for_request(self, question_key: str, model: str, query_class: str = "") -> BuiltRoute:
        """The route as it serves one prompt: by the model that has not seen it, in full where nothing is proved.

        model        that is asked for: of one that no evidence speaks of, nothing is known
        query_class  as `signals.query.class_of` has it: one that the guard-rails hold gets its own ceiling
        """
        if not (self.folds or self.arm or self.is_proved):
            if self.holding.classes.get(query_class) == 0:
                return replace(self, holding=replace(self.holding, observe="its class runs in full"))
            return self
        made = self.in_force.publication or self.in_force.last
        asked = "" if self.settings.kind == "rounds" else model
        if made is None or all(one[0] != asked for one in made.upstream):
            return replace(self, certified=False, folds=(), levels=(), arm="")
        ceiling = lowest(dict(made.classes).get(query_class), self.holding.ceiling_of(query_class))
        if not self.folds:  # an arm, or its owner's policy: there is nothing between it and a full run
            return replace(self, certified=False, arm="") if ceiling == 0 else self
        return replace(self, levels=self.folds[prompt_fold(question_key, len(self.folds))], ceiling=ceiling)

    def answers_as_known(self, model: str, named: str | None, fingerprint: str | None) -> bool:
        """Is whoever answered a request for `model` the one that the evidence speaks of, as far as it says?"""
        made = self.in_force.publication
        if made is None or not (self.folds or self.arm or self.is_proved):
            return True
        asked = "" if self.settings.kind == "rounds" else model
        known = [one for one in made.upstream if one[0] == asked]
        return not known or any(
            (not one[1] or named is None or one[1] == named) and (not one[2] or fingerprint in (None, one[2]))
            for one in known
        )

    def guarantee(
        self,
        *,
        killed: bool = False,
        unread: bool = False,
        classes: Mapping[str, int] | None = None,
        beside: tuple[str, ...] = (),
    ) -> RouteGuarantee:
        """What is promised on the route, or to one request where this is the route as that request gets it.

        killed   is the kill switch on?
        unread   could the log not be read for too long?
        classes  audits by class of questions, as the job `monitor` has seen them
        beside   what serves a part of its requests in another way
        """
        promised, made = (
            guarantee_of(
                GuaranteeInputs(
                    name=self.name,
                    settings=self.settings,
                    epoch=self.in_force.epoch,
                    publication=self.in_force.publication,
                    pause=self.in_force.pause,
                    holding=self.holding,
                    setup=self.setup,
                    killed=killed,
                    unread=unread,
                    unreadable=self.refused is not None,
                    classes=classes or {},
                    beside=beside,
                )
            ),
            self.in_force.publication,
        )
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

    @property
    def may_probe(self) -> bool:
        """May a run that nothing can stop be probed? Only where somebody saw what a probe costs there."""
        probe = self.settings.probe
        return probe is not None and (probe.verified_by == "owner" or allows_probes(self.findings))


def route_setup(settings: Route, scorer: str, url_key: str, *, probes: bool) -> str:
    """The settings that a route's evidence rests on, in short: where they differ, it is evidence of something else.

    Not in it: the mode, the promise, shares and budgets, which requests match.

    url_key  of the upstream's address
    probes   are trial answers asked for by extra calls?
    """
    kept = {name: getattr(settings, name) for name in (*_EVIDENCE, "scorer", "steps", "probe")}
    written = msgspec.json.encode([kept, url_key, probes], order="deterministic")
    return f"{settings.kind}, scorer {scorer}, {hashlib.blake2b(written, digest_size=4).hexdigest()}"


def n_samples(route: BuiltRoute, options: Mapping[str, Any]) -> int:
    if route.settings.kind != "samples":
        return 1
    samples, limit = int(options.get("samples") or route.settings.samples), route.settings.max_extra_calls + 1
    if samples > limit:
        message = f"suffice.samples: got {samples}; at most {limit} on this route"
        raise BadRequest(message, param="suffice.samples", code="too_many_samples")
    return samples


def ungoverned(route: BuiltRoute, body: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """Why this request must pass through untouched; None: it is governed."""
    if route.settings.mode == "off":
        return "off"
    if route.settings.kind == "rounds":
        return "rounds"
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return "messages"
    if body.get("n") not in (None, 1) or isinstance(body.get("n"), bool):
        return "n"
    for field, reason in BLOCKING.items():
        if body.get(field) not in (None, False, [], {}, ""):
            return reason
    if route.settings.kind == "samples" and n_samples(route, options) == 1:
        return "samples=1"
    return _uncontinuable(body, messages) if route.settings.kind == "reasoning" else None


def _uncontinuable(body: Mapping[str, Any], messages: list[dict[str, Any]]) -> str | None:
    """Why a thought could not be continued after a stop. Samples do not mind: each is the request as it stands."""
    if any(_shows_more_than_text(m.get("content")) for m in messages):
        return "images"  # a thought is continued as the template's text, in which they have no place
    if messages[-1].get("role") == "assistant" or body.get("continue_final_message"):
        return "prefill"  # the answer begins with the client's own words, a thought may be among them
    return None


def _shows_more_than_text(content: Any) -> bool:
    """Does a message hold parts (image_url, input_audio, file, …) that are not text?"""
    return isinstance(content, list) and any(
        not isinstance(part, dict) or part.get("type") not in TEXT_PARTS for part in content
    )
