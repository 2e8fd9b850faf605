"""Every exception that Suffice raises on purpose.

    SufficeError
    ├── ConfigError            the configuration cannot be used; raised at start-up only
    ├── BadRequest             the client's request cannot be served; carries an HTTP status
    │   ├── TooLarge           a size limit was exceeded (413)
    │   └── OverloadError      refused for now, by load or by a key's limit; carries when to retry (429)
    ├── UpstreamError          the model server failed; carries the client's status and code
    │   ├── UpstreamDown       no connection, or it broke off
    │   ├── UpstreamTimeout    silent for longer than its limit
    │   ├── UpstreamBusy       an extra call was not sent for lack of capacity; the run continues
    │   └── UpstreamProtocol   the response does not follow the upstream's protocol
    ├── StoreError             the event log could not be written or read
    │   └── StoreFull          no disk space, or the queue is full
    ├── TraceError             recorded runs cannot be read or written; names file, row and column
    ├── ExecutorError          a shard of work ends every worker process that runs it
    ├── ToolError              another program, such as Label Studio, could not be used
    └── ClosedError            a governor or a run was used after its end, after close or after a fork

A message gives the place, the value and what is allowed: ``routes.math.kind: unknown kind
'reasonning'; allowed: reasoning, samples, rounds``. No message carries a secret or a prompt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SufficeError(Exception):
    pass


class ConfigError(SufficeError, ValueError):
    pass


class BadRequest(SufficeError):
    """Its message is sent to the client.

    status  HTTP status, 4xx, or 508 for a loop
    param   the field at fault in OpenAI's error shape, or None
    code    a stable machine-readable word
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str = "bad_request") -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class TooLarge(BadRequest):
    def __init__(self, message: str) -> None:
        super().__init__(message, status=413, code="too_large")


class OverloadError(BadRequest):
    def __init__(self, message: str, *, retry_after_s: int, code: str = "fallback_capacity") -> None:
        super().__init__(message, status=429, code=code)
        self.retry_after_s = retry_after_s


class UpstreamError(SufficeError):
    status = 502  # sent to the client
    code = "upstream_error"
    address = ""  # host and port, for the operator and never for a client; "": unknown

    def for_operator(self) -> str:
        return f"{self}; tried {self.address}" if self.address else str(self)


class UpstreamDown(UpstreamError):
    code = "upstream_down"


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class UpstreamProtocol(UpstreamError):
    code = "upstream_protocol"


class UpstreamBusy(UpstreamError):
    status = 503
    code = "upstream_busy"

    def __init__(self, reason: str) -> None:
        super().__init__(f"an extra call was not sent: {reason}")
        self.reason = reason  # an `upstream.allowance.Refusal`


class StoreError(SufficeError):
    pass


class StoreFull(StoreError):
    pass


class TraceError(SufficeError, ValueError):
    """Recorded runs cannot be read or written.

    row     in the file, from 1; None: the whole file
    column  its name, `steps.tokens` for one inside the steps; None: the whole row
    """

    def __init__(self, problem: str, *, file: str, row: int | None = None, column: str | None = None) -> None:
        place = ", ".join([file, *([] if row is None else [f"row {row}"]), *([] if column is None else [column])])
        super().__init__(f"{place}: {problem}")
        self.file = file
        self.row = row
        self.column = column


class ExecutorError(SufficeError):
    pass


class ToolError(SufficeError):
    pass


class ClosedError(SufficeError, RuntimeError):
    pass


def name_hint(wrong: object, known: Iterable[str]) -> str:
    """Return the end of an unknown-name error: the nearest known name, if any, and all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong[:100], names, n=1, cutoff=0.5) if isinstance(wrong, str) else []
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(names) or 'it has none'}"


def shorten(value: object) -> str:
    """Return what an error says it got: a text, cut if it is long, or the type of everything else."""
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    return repr(value) if len(value) <= 80 else f"{value[:77]!r}..."


def why_of(error: Exception) -> str:
    """Describe a failure; only our own errors are quoted, because others may contain a prompt."""
    return str(error) if isinstance(error, SufficeError) else type(error).__name__


def problem_of(error: Exception) -> str:
    """Name the class of a failure, with the message if it is our own."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, SufficeError) else name
