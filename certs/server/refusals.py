"""Every way the CA says no.

The caller reads the code and a fixed text per code; the `reason` slug and the detail go to the log
and the traces only, so that nobody can probe which check failed.
"""

import grpc

PUBLIC_TEXT = {
    grpc.StatusCode.UNAUTHENTICATED: "the token was not accepted",
    grpc.StatusCode.PERMISSION_DENIED: "not allowed",
    grpc.StatusCode.INVALID_ARGUMENT: "the request was not accepted",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "too many requests, try again later",
    grpc.StatusCode.UNAVAILABLE: "not able to answer now, try again later",
    grpc.StatusCode.INTERNAL: "internal error",
}
RETRY_AFTER = "retry-after-ms"
"""Trailing metadata of RESOURCE_EXHAUSTED: when to come again, in milliseconds."""

BANNED = "podlink-banned"
"""Trailing metadata of PERMISSION_DENIED: what of the caller is banned (certs.trust.bans). The one cause
that the caller is told: it is lawful otherwise, and must know to drop its leaf and cut its links."""


class CallRefused(Exception):
    """Base: `code` is what the caller gets, `reason` and the text are for the log."""

    code = grpc.StatusCode.INTERNAL
    retry_after_s: float | None = None

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail[:256]}" if detail else reason)
        self.reason = reason


class TokenRefused(CallRefused):
    """The caller did not prove who it is."""

    code = grpc.StatusCode.UNAUTHENTICATED


class CallerForbidden(CallRefused):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class RequestRefused(CallRefused):
    """The request itself breaks a rule."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class TooMany(CallRefused):
    """A limit was reached; the same call may succeed after `retry_after_s`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, reason: str, detail: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(reason, detail)
        self.retry_after_s = retry_after_s


class CannotAnswer(CallRefused):
    """Something the CA depends on does not work; the same call may succeed later."""

    code = grpc.StatusCode.UNAVAILABLE


class CallerBanned(CallerForbidden):
    """The caller's identity or pod is banned; `kind` says which."""

    def __init__(self, kind: str) -> None:
        super().__init__("banned", f"by {kind}")
        self.kind = kind
