"""What the values of settings may be."""

from __future__ import annotations

import math
import re
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, get_args

import msgspec

# Names of files. `wiring.files.read_settings` makes relative ones absolute: those that are read count from the folder
# of the settings file, those that are written from the data directory, which is the same folder unless one is named.
FileName: TypeAlias = Annotated[str, msgspec.Meta(extra={"names": "file"})]
DataFile: TypeAlias = Annotated[str, msgspec.Meta(extra={"names": "file that is written"})]
FileUrl: TypeAlias = Annotated[str, msgspec.Meta(extra={"names": "file in a URL"})]

Driver: TypeAlias = str  # a key of `upstream.drivers.DRIVERS`, which plugins may extend
FinishMethod = Literal["native", "prefill", "raw", "re-ask"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
CancelSaves = Literal["yes", "no", "unknown"]
VerifiedBy = Literal["doctor", "owner"]
OnFallback = Literal["quality_first", "availability_first"]
AgentMode = Literal["auto", "off"]
LATER_SHARE = 0.05  # of requests to audit once something is certified, unless a route sets its own
TextPart = Literal["answers", "comments", "questions", "metadata"]
ExperimentUnit = Literal["request", "user", "conversation", "tenant"]
ConsoleRole = Literal["viewer", "reviewer", "operator", "admin"]  # a later one may do all that an earlier one may
# What a key may do: ask the model, send feedback; in the control API act as a viewer, an operator, an admin.
KeyScope = Literal["complete", "feedback", "read", "operate", "admin"]
Direction = Literal["higher", "lower"]
MetricType = Literal["boolean", "rating", "number", "category"]
MetricLevel = Literal["request", "conversation", "user"]
LiveRail: TypeAlias = Literal["latency", "errors", "no_answer", "satisfaction"]
LIVE_GUARDRAILS: Final[tuple[LiveRail, ...]] = get_args(LiveRail)
SslMode = Literal["", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
MailTls = Literal[
    "required",  # refuse a mail server without TLS
    "opportunistic",  # TLS if offered: an attacker on the path can strip the offer and read the mail
    "off",  # never
]


class Limits(NamedTuple):
    least: float
    says: str  # what is allowed
    most: float = math.inf  # finite all the same

    def problem(self, value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"got {value!r:.60}; a finite number, {self.says}"
        return None if self.least <= value <= self.most else f"got {value}; {self.says}"


class TextRule(NamedTuple):
    pattern: str  # of the whole text
    says: str  # what is allowed

    def problem(self, value: str, most: int = 200) -> str | None:
        return None if re.fullmatch(self.pattern, value) else f"got {value[:most]!r}; {self.says}"


_ABOVE_0: Final = math.nextafter(0, 1)
_ABOVE_HALF: Final = math.nextafter(0.5, 1)
_BELOW_1: Final = math.nextafter(1, 0)

NonNegative: TypeAlias = Annotated[float, Limits(0, "at least 0")]
NonNegativeInt: TypeAlias = Annotated[int, Limits(0, "at least 0")]
Positive: TypeAlias = Annotated[float, Limits(_ABOVE_0, "more than 0")]
PositiveInt: TypeAlias = Annotated[int, Limits(1, "at least 1")]
Seconds: TypeAlias = Annotated[float, Limits(0, "at least 0 seconds")]
PositiveSeconds: TypeAlias = Annotated[float, Limits(_ABOVE_0, "more than 0 seconds")]
TimeLimit: TypeAlias = Annotated[float, Limits(0, "a number of seconds, or 0: no limit")]
Interval: TypeAlias = Annotated[float, Limits(1, "at least 1 second")]
Days: TypeAlias = Annotated[float, Limits(0, "at least 0 days")]
Port: TypeAlias = Annotated[int, Limits(0, "0 to 65535", most=65_535)]
MailPort: TypeAlias = Annotated[int, Limits(1, "1 to 65535", most=65_535)]
AddressLimit: TypeAlias = Annotated[int, Limits(0, "at least 1, or 0: no limit")]
# A gateway remembers the times of this many requests per key.
RequestsPerMinute: TypeAlias = Annotated[int, Limits(1, "from 1 to 1000000", most=1_000_000)]
ReviewsPerDay: TypeAlias = Annotated[int, Limits(0, "0 to 10,000, where 0 asks nobody", most=10_000)]
Reviewers: TypeAlias = Annotated[int, Limits(1, "1 to 9", most=9)]
TokenBudget: TypeAlias = Annotated[int, Limits(0, "at least 0, which is no thought at all")]
UsdPerMtok: TypeAlias = Annotated[float, Limits(0, "US dollars for a million tokens, at least 0")]
Capacity: TypeAlias = Annotated[float, Limits(_ABOVE_0, "a ratio above 0")]
Fraction: TypeAlias = Annotated[float, Limits(0, "a fraction from 0 to 1", most=1)]
EmFraction: TypeAlias = Annotated[float, Limits(0, "a fraction from 0 to 1 (1 point of EM = 0.01)", most=1)]
# Below a thousandth, a class would have too few live runs.
SampleRate: TypeAlias = Annotated[float, Limits(0.001, "a fraction from 0.001 to 1, which keeps all", most=1)]
Propensity: TypeAlias = Annotated[float, Limits(_ABOVE_0, "a fraction above 0, up to 1", most=1)]
Satisfaction: TypeAlias = Annotated[
    float, Limits(_ABOVE_0, "a fraction up to 1, or a rating above 1 and up to 5", most=5)
]
LayerShare: TypeAlias = Annotated[float, Limits(0.001, "a fraction from 0.001 to 1", most=1)]
# A cap learned from fewer units cuts many runs.
PlannedUnits: TypeAlias = Annotated[int, Limits(200, "at least 200")]
WarmupUnits: TypeAlias = Annotated[int, Limits(20, "at least 20")]
CandidateShare: TypeAlias = Annotated[
    float, Limits(_ABOVE_0, "above 0 and at most 0.5, so that the control can be as large", most=0.5)
]
Margin: TypeAlias = Annotated[float, Limits(_ABOVE_0, "above 0 and below 1", most=_BELOW_1)]
LatencyMargin: TypeAlias = Annotated[float, Limits(_ABOVE_0, "above 0 and at most 10", most=10)]
Confidence: TypeAlias = Annotated[float, Limits(_ABOVE_HALF, "a fraction above 0.5 and below 1", most=_BELOW_1)]

NAME: Final = TextRule(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "a name is 1 to 64 letters, digits, '_', '.' and '-', not a sign first"
)
LayerName: TypeAlias = Annotated[str, NAME]
TenantName: TypeAlias = Annotated[str, TextRule(f"({NAME.pattern})?", NAME.says)]
ReplicaName: TypeAlias = Annotated[str, TextRule(r"[A-Za-z0-9_.:-]{0,100}", "up to 100 letters, digits, '_.:-'")]
HostName: TypeAlias = Annotated[str, TextRule(r"[A-Za-z0-9_.-]{1,253}", "a host name without scheme and port")]
MailHost: TypeAlias = Annotated[str, TextRule(r"[A-Za-z0-9_.:-]{0,253}", "a host name or address without a port")]
HeaderName: TypeAlias = Annotated[str, TextRule(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*", "no HTTP header name")]
EMAIL_ADDRESS: Final = TextRule(r"[^@\s<>,;]+@[^@\s<>,;]+", "needs plain addresses such as ops@example.org")
EmailAddress: TypeAlias = Annotated[str, EMAIL_ADDRESS]
_ORIGIN: Final = TextRule(
    r"(?!http://.*:80$|https://.*:443$)[a-z][a-z0-9+.-]*://[a-z0-9_.\[\]:-]+",
    "an origin as browsers send it, in lower case, without a path and without the scheme's own port, such as"
    " 'https://app.example.com'; no wildcards",
)
Origin: TypeAlias = Annotated[str, _ORIGIN]
_RELAYED_PATH: Final = TextRule(
    r"(GET|POST|PUT|PATCH|DELETE|OPTIONS) (/|(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]{1,200})+)",
    "need a method and an exact path, such as 'POST /tokenize'; methods: GET, POST, PUT, PATCH, DELETE, OPTIONS",
)
RelayedPath: TypeAlias = Annotated[str, _RELAYED_PATH]
