"""Authentication and permissions of clients. If no key is configured, every client may do everything."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from struct import Struct
from typing import Any, Final

from suffice.errors import BadRequest
from suffice.records import frozen_struct
from suffice.rollout.assign import AuditAssignment, assign_audit, joined, unit_name
from suffice.settings import Key, KeyScope, Route
from suffice.store.rows.events import StoredObject
from suffice.upstream.client import KEY_HEADERS

HEADER_LIMIT_CHARS = 4096
ACTS: Final[tuple[KeyScope, ...]] = ("read", "operate", "admin")
TRUSTED_SOURCES: Final = ("reviewer", "gold", "judge")  # only for keys that list them, and for feedback keys


@frozen_struct
class Caller:
    """The holder of a key. Without `routes`, it may name only unreserved routes; see `may_use`."""

    id: str = ""  # keyed hash, as `Request.sender`; "": no key was required
    name: str = ""  # of its key in the settings; "": its key has no table
    namespace: str = ""  # scope of the ids that clients choose
    permits: Key = field(default=Key(key_env=""))
    only_feedback: bool = False  # its key may only send feedback, from any source

    @property
    def is_restricted(self) -> bool:
        return self.permits.routes is not None

    @property
    def sees_others(self) -> bool:
        """Whether it may see what other keys have made: of its tenant if it has one, else of all."""
        return not self.id or not self.may_ask or self.permits.all_objects

    @property
    def sees_all(self) -> bool:
        return self.sees_others and not self.permits.tenant

    @property
    def sees_metrics(self) -> bool:
        asks = self.may_ask and not self.is_restricted
        return self.may_act("read") or (not self.permits.tenant and (asks or self.permits.all_objects))

    @property
    def may_ask(self) -> bool:
        return not self.only_feedback and self.permits.routes != () and "complete" in self.permits.scopes

    @property
    def may_rate(self) -> bool:
        return not self.id or self.only_feedback or "feedback" in self.permits.scopes

    def may_act(self, needs: KeyScope) -> bool:
        """Return whether it may act on the whole gateway; a later scope may do all that an earlier one may."""
        return not self.permits.tenant and any(scope in self.permits.scopes for scope in ACTS[ACTS.index(needs) :])

    def owns(self, sender: str, tenant: str) -> bool:
        """Return whether it may see what a key of a tenant has made."""
        return sender == self.id or (self.sees_others and self.permits.tenant in ("", tenant))

    def may_use(self, name: str, route: Route, *, by_name: bool) -> bool:
        """Return whether requests may go to a route, by name (`by_name`) or by its match rules."""
        if self.permits.routes is not None:
            return name in self.permits.routes
        is_reserved = route.mode == "off" or (route.mode == "enforce" and route.uncertified)
        return not (self.id and by_name and is_reserved)

    def may_write(self, source: str) -> bool:
        if not self.id or self.only_feedback:
            return True
        if not self.may_rate:
            return False
        if self.permits.sources is not None:
            return source in self.permits.sources
        return source.strip().casefold() not in TRUSTED_SOURCES


ANYONE: Final = Caller()


@dataclass(frozen=True, slots=True)
class HashedKey:
    """A key of which only the hash is known."""

    digest: bytes
    caller: Caller
    until_s: float | None = None  # Unix time at which it ends; None: never


class KeyRing:
    """The keys that clients may send.

    callers  by key, from the environment
    hashed   from the log
    needed   a key is required even while there is none
    """

    def __init__(
        self,
        callers: Mapping[str, Caller] | None = None,
        *,
        hashed: Sequence[HashedKey] = (),
        needed: bool = False,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        # Looked up by digest, so that timing reveals nothing about a key.
        known = [HashedKey(_digest(key), caller) for key, caller in (callers or {}).items()]
        self._by_digest, self._wall_s = {one.digest: one for one in (*hashed, *known)}, wall_s
        self.callers = tuple({one.caller.id: one.caller for one in self._by_digest.values()}.values())
        self.asks_for_keys = needed or any(not one.only_feedback for one in self.callers)
        # Each sees only its own objects. Keys of the log come and go, and what one has made outlives it.
        self.has_tenants = needed or sum(one.may_ask for one in self.callers) > 1

    def holder(self, key: str) -> Caller | None:
        known = self._by_digest.get(_digest(key))
        if known is None or (known.until_s is not None and self._wall_s() >= known.until_s):
            return None
        return known.caller

    def find(self, headers: Iterable[tuple[str, str]], *, x_api_key: bool = False) -> Caller | None:
        named = list(headers)
        keys = [_bearer(value) for value in _sent_once(named, "authorization")]
        keys += _sent_once(named, "x-api-key") if x_api_key else []
        known = (self.holder(key) for key in keys if key and " " not in key)
        return next((caller for caller in known if caller is not None), None)

    def require(self, headers: list[tuple[str, str]], *, feedback: bool = False, x_api_key: bool = False) -> Caller:
        """Return the caller. Raise BadRequest 401 if a key is required and none is valid."""
        if not (self.callers if feedback else self.asks_for_keys):
            return Caller(namespace=dict(headers).get("authorization", ""))
        caller = self.find(headers, x_api_key=x_api_key)
        if caller is None or (caller.only_feedback and not feedback):
            message = "authorization: needs 'Bearer KEY' with a key of this gateway"
            raise BadRequest(message, status=401, code="invalid_api_key")
        return caller

    def without_keys(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the headers to send upstream: a gateway with keys of its own forwards none."""
        return [(k, v) for k, v in headers if k not in KEY_HEADERS] if self.asks_for_keys else headers

    def isolates(self, caller: Caller) -> bool:
        """Return whether this caller may see only a part of what clients have made."""
        return self.has_tenants and not caller.sees_all


def _sent_once(headers: list[tuple[str, str]], name: str) -> list[str]:
    values = [v for k, v in headers if k == name]
    return values if len(values) == 1 and len(values[0]) <= HEADER_LIMIT_CHARS else []


def _bearer(value: str) -> str:
    kind, _, key = value.partition(" ")
    return key if kind.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    """A plain hash, because keys are random: nobody can try them out."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


# --------------------------------------------------------------------------- tokens that rate one answer

TOKEN_HEADER: Final = "x-suffice-feedback-token"  # noqa: S105 - a header's name
MOST_TOKEN_CHARS: Final = 400
MOST_TOKENS_COUNTED: Final = 50_000  # answers for which feedback by token is counted


def sign_token(episode_id: str, *, until_s: int, salt: str) -> str:
    """Return a token that lets its holder rate one answer until a Unix time. It may go to a browser.

    HMAC-SHA-256 under a key derived from the deployment's salt, truncated to 128 bits.
    """
    signed = f"v1.{episode_id}.{until_s:x}"
    return f"{signed}.{_mac(signed, salt)}"


def token_header(token: str) -> list[tuple[str, str]]:
    return [(TOKEN_HEADER, token)] if token else []


def read_token(token: str, *, now_s: float, salt: str) -> str:
    """Return the episode id of a token. Raise BadRequest 401 if it is forged, damaged or expired."""
    signed, _, mac = token.rpartition(".")
    genuine = hmac.compare_digest(_mac(signed, salt).encode(), mac.encode("utf-8", "surrogatepass"))
    if len(token) > MOST_TOKEN_CHARS or not genuine:
        message = "feedback token: was not issued by this gateway; send the one that came with the answer, unchanged"
        raise BadRequest(message, status=401, param="token", code="invalid_feedback_token")
    head, _, until = signed.rpartition(".")
    if now_s > int(until, 16):
        message = "feedback token: has expired; feedback on this answer now needs a key"
        raise BadRequest(message, status=401, param="token", code="expired_feedback_token")
    return head.partition(".")[2]


def _mac(signed: str, salt: str) -> str:
    keyed = _keyed(salt).copy()
    keyed.update(signed.encode("utf-8", "surrogatepass"))
    return keyed.hexdigest()[:32]


@lru_cache(maxsize=8)
def _keyed(salt: str) -> hmac.HMAC:
    key = hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), person=b"feedback-token").digest()
    return hmac.new(key, digestmod="sha256")


# --------------------------------------------------------------------------- repeated deliveries

KEY_WINDOW_S: Final = 600.0  # least time for which an idempotency key is remembered
MOST_DELIVERIES: Final = 500_000  # remembered requests; the oldest is forgotten first: with 200 bytes each, 100 MB
_DELIVERY: Final = Struct("<ddI?16s")  # time of the first delivery, propensity, deliveries, audit, unit


@dataclass(frozen=True, slots=True)
class RequestKey:
    route: str
    caller: str  # value of the header `authorization`; "": none was sent
    body: bytes
    conversation: str | None = None
    idempotency_key: str | None = None  # None: the body identifies the request

    @property
    def digest(self) -> bytes:
        """16 bytes, equal only for deliveries of one request."""
        prefix = joined(self.route, self.caller, self.conversation or None, self.idempotency_key or None)
        body = b"" if self.idempotency_key else self.body
        # `joined` is unambiguous, so the body can follow directly.
        return hashlib.blake2b(prefix.encode("utf-8", "surrogatepass") + body, digest_size=16).digest()


@dataclass(slots=True)
class DeliveryMemory:
    """Remembers the audit assignment of each request while it may be delivered again.

    One draw covers all deliveries. If a level could stop m of them, each bet on the draw would have to be divided by
    m: with 8, a harmless level would need 8 times the audits. So m is 1, and later deliveries run in full.

    A draw is a keyed hash of the request, of the period in which it arrives, of the window's length, and of the UTC
    day: every replica draws the same, and nobody without the salt can predict it. A request that another replica has
    logged, or this one before a restart, is known by its unit.
    """

    _known: dict[bytes, bytes] = field(default_factory=dict)  # packed, oldest first
    _logged: dict[str, bytes] = field(default_factory=dict)  # by unit, packed, oldest first

    def assign(
        self, key: RequestKey, *, episode_id: str, share: float, salt: str, window_s: float, now_s: float, wall_s: float
    ) -> AuditAssignment:
        """Draw for a first delivery; return a repeated one's first draw with its delivery number.

        window_s  within which the same body is a repeat; 0: only an idempotency key makes one
        now_s     monotonic
        wall_s    Unix time; replicas whose clocks differ draw apart where their periods or days do

        Raise ValueError for a share outside [0, 1].
        """
        own_window_s = max(window_s, KEY_WINDOW_S) if key.idempotency_key else window_s
        for known in (self._known, self._logged):
            _forget(known, now_s - max(window_s, KEY_WINDOW_S))
        digest = key.digest
        if own_window_s <= 0:
            return assign_audit(joined(digest.hex(), episode_id), share=share, salt=salt, at_s=wall_s)
        period = int(wall_s / own_window_s + int.from_bytes(digest[:4], "big") / 2**32)  # they end at different times
        packed = self._known.get(digest) or self._find_logged(digest, period, salt)
        if packed is not None:
            first_s, first = _unpack(packed)
            if now_s - first_s <= own_window_s:
                repeated = replace(first, delivery=first.delivery + 1)
                self._known[digest] = _pack(first_s, repeated)
                return repeated
        assigned = assign_audit(_unit(digest, period), share=share, salt=salt, at_s=wall_s)
        self._known.pop(digest, None)  # keeps entries in the order of first deliveries
        self._known[digest] = _pack(now_s, assigned)
        return assigned

    def note_logged(self, first: Iterable[AuditAssignment], *, now_s: float) -> None:
        """Note first deliveries that the log shows, to whichever replica they came."""
        for assigned in first:
            self._logged.setdefault(assigned.unit, _pack(now_s, assigned))

    def _find_logged(self, digest: bytes, period: int, salt: str) -> bytes | None:
        for near in (period, period - 1, period + 1) if self._logged else ():
            if (known := self._logged.get(unit_name(_unit(digest, near), salt=salt))) is not None:
                return known
        return None


def _unit(digest: bytes, period: int) -> str:
    return joined(digest.hex(), str(period))


def _pack(first_s: float, one: AuditAssignment) -> bytes:
    """Pack a remembered draw: hundreds of thousands are remembered, and as objects they take twice the memory."""
    return _DELIVERY.pack(first_s, one.propensity, one.delivery, one.audit, one.unit.encode())


def _unpack(packed: bytes) -> tuple[float, AuditAssignment]:
    first_s, propensity, delivery, audit, unit = _DELIVERY.unpack(packed)
    name = unit.rstrip(b"\0").decode()
    return first_s, AuditAssignment(audit=audit, propensity=propensity, unit=name, delivery=delivery)


def _forget(known: dict[Any, bytes], before_s: float) -> None:
    while known:
        oldest = next(iter(known))
        if _DELIVERY.unpack(known[oldest])[0] >= before_s and len(known) < MOST_DELIVERIES:
            return
        del known[oldest]


# --------------------------------------------------------------------------- objects that upstreams store

MOST_ENTRIES: Final = 10_000  # objects in memory; the log has the others
MOST_ID_CHARS: Final = 200
MOST_REFERENCES: Final = 1_000  # per body; each is looked up
LARGE_BYTES: Final = 32 * 1024  # a longer body is searched in a thread
# Collections of OpenAI's and Anthropic's APIs: the part of a path after the name is an object's id.
_COLLECTION_NAMES: Final = """
    assistants batches chat/completions containers conversations evals files fine_tuning/jobs responses skills threads
    uploads vector_stores videos
"""
_COLLECTIONS: Final = frozenset(_COLLECTION_NAMES.split())
_CALLS: Final = frozenset({"compact", "input_tokens", "runs", "count_tokens"})  # in the place of an id
# Fields of request bodies that name objects, at any depth.
_REFERENCE_FIELDS: Final = """
    assistant_id batch_id container container_id conversation conversation_id file_id file_ids input_file_id
    previous_response_id response_id thread_id training_file validation_file vector_store_id vector_store_ids
"""
_REFERENCES: Final = frozenset(_REFERENCE_FIELDS.split())
# Free-form values of callers and models; names in them refer to no object.
_FREE: Final = frozenset({"metadata", "parameters", "schema", "input_schema", "json_schema", "arguments"})
_MAY_NAME: Final = (b"_id", b"_file", b"conversation", b"container", b"item_reference", b"\\u")  # signs of a reference


class Objects:
    """The objects that an upstream stores (responses, files, batches …), with the key that created each.

    With several keys, an object is visible only to its creator and to keys with `all_objects`; lists are refused.
    """

    def __init__(self, find: Callable[[str], StoredObject | None] = lambda _: None) -> None:
        self._find = find  # in the log; called in a thread
        self._recent: dict[str, StoredObject] = {}

    def note(self, made: StoredObject) -> bool:
        """Record an object's creation. Return False if it was known; its first creator stays the owner."""
        is_new = self._recent.setdefault(made.object_id, made) is made
        forget_oldest(self._recent, MOST_ENTRIES)
        return is_new

    async def of(self, object_id: str) -> StoredObject | None:
        """Return an object's record. The log takes precedence: another process may have recorded the id earlier."""
        stored = await asyncio.to_thread(self._find, object_id)
        if stored is not None:
            self._recent[object_id] = stored
            forget_oldest(self._recent, MOST_ENTRIES)
        return stored or self._recent.get(object_id)

    def recent(self, object_id: str) -> StoredObject | None:
        return self._recent.get(object_id)

    async def check(self, caller: Caller, object_id: str, where: str) -> None:
        """Raise BadRequest 404, naming the field `where`, unless the caller may see the object."""
        stored = None if len(object_id) > MOST_ID_CHARS else await self.of(object_id)
        if stored is None or not caller.owns(stored.sender, stored.tenant):
            message = f"{where}: {object_id[:80]!r} is not found among what this key has made through this gateway"
            raise BadRequest(message, status=404, param=where, code="not_found")

    async def check_body(self, caller: Caller, raw: bytes, body: Mapping[str, Any]) -> None:
        """Check every object that a request's body names. Raise BadRequest."""
        if not any(word in raw for word in _MAY_NAME):
            return
        named = await asyncio.to_thread(references, body) if len(raw) > LARGE_BYTES else references(body)
        if len(named) > MOST_REFERENCES:
            raise BadRequest(f"body: names more than {MOST_REFERENCES} objects", code="too_many_objects")
        for object_id, where in named.items():
            await self.check(caller, object_id, where)
        chosen = body.get("request_id")  # some engines let callers choose the id of a new object
        if isinstance(chosen, str) and (stored := await self.of(chosen)) is not None and stored.sender != caller.id:
            raise BadRequest("request_id: is taken; choose another one", status=409, param="request_id", code="taken")


def forget_oldest(table: dict[str, Any], most: int) -> None:
    if len(table) > most:
        del table[next(iter(table))]


def references(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the objects that a body names, each with the field; about one more than allowed if there are too many."""
    named, waiting = dict[str, str](), list[Any]([body])
    while waiting and len(named) <= MOST_REFERENCES:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if node.get("type") == "item_reference" and isinstance(node.get("id"), str):
                named[node["id"]] = "item_reference"
            free = _FREE | {"input"} if node.get("type") == "tool_use" else _FREE
            for name, value in node.items():
                if name in _REFERENCES and name not in free:
                    named.update((object_id, name) for object_id in _ids_in(value))
                if name not in free and isinstance(value, dict | list):
                    waiting.append(value)
    return named


def _ids_in(value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        object_id = one.get("id") if isinstance(one, dict) else one
        if isinstance(object_id, str) and object_id:
            yield object_id


def object_in(path: str) -> tuple[bool, str | None]:
    """Return whether a path belongs to a collection of objects, and the object's id if the path has one."""
    parts = [part for part in path.split("/") if part]
    for at, part in enumerate(parts):
        if part in _COLLECTIONS or "/".join(parts[max(0, at - 1) : at + 1]) in _COLLECTIONS:
            behind = parts[at + 1] if at + 1 < len(parts) else None
            return True, None if behind in _CALLS else behind
    return False, None
