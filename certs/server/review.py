"""Reads a TokenReview's answer: who the caller is, or why it is nobody. Pure.

Every condition is checked although the API server should have: an answer that leaves one open
(an older server ignores audiences, a token may not be bound to a pod) must not become an identity.
(Kubernetes API reference, TokenReview v1; KEP-1205 for bound tokens.)
"""

from dataclasses import dataclass
from typing import Any

from certs.server.refusals import TokenRefused
from certs.trust.identity import IdentityMalformed, WorkloadIdentity

POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
NODE_NAME = "authentication.kubernetes.io/node-name"
MAX_TOKEN_CHARS = 16 * 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called, by the word of the API server alone."""

    identity: WorkloadIdentity
    pod_name: str
    pod_uid: str
    node_name: str
    """Empty before Kubernetes 1.30, whose tokens first carry it."""


def read_bearer(metadata: list[tuple[str, str | bytes]]) -> str:
    """The token in `authorization: Bearer <token>`; raises TokenRefused.

    Only its outer form is looked at, so that plain garbage costs the API server nothing.
    """
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        raise TokenRefused("token_missing", f"{len(values)} authorization entries")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TokenRefused("token_missing", "not a bearer token")
    if len(token) > MAX_TOKEN_CHARS or token.count(".") != 2 or not token.isascii():
        raise TokenRefused("token_malformed", f"{len(token)} characters")
    if not token.replace(".", "").replace("-", "").replace("_", "").isalnum():
        raise TokenRefused("token_malformed", "not a JSON web token")
    return token


def read_review(answer: Any, *, audience: str, trust_domain: str) -> Caller:
    """The caller that `answer` proves; raises TokenRefused for any doubt at all."""
    status = _mapping(_mapping(answer).get("status"))
    if status.get("error"):
        raise TokenRefused("token_refused", str(status["error"]))
    if status.get("authenticated") is not True:
        raise TokenRefused("token_refused", "not authenticated")
    audiences = status.get("audiences")
    if not isinstance(audiences, list) or audience not in audiences:
        raise TokenRefused("token_audience", f"audiences {audiences!r}")
    user = _mapping(status.get("user"))
    extra = _mapping(user.get("extra"))
    return Caller(
        identity=_read_identity(user.get("username"), trust_domain),
        pod_name=_one(extra, POD_NAME),
        pod_uid=_one(extra, POD_UID),
        node_name=_one(extra, NODE_NAME) if NODE_NAME in extra else "",
    )


def _read_identity(username: object, trust_domain: str) -> WorkloadIdentity:
    parts = username.split(":") if isinstance(username, str) else []
    if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"]:
        raise TokenRefused("token_not_a_pod", f"user {username!r}")
    try:
        return WorkloadIdentity(trust_domain, parts[2], parts[3])
    except IdentityMalformed as e:
        raise TokenRefused("token_not_a_pod", str(e)) from e


def _one(extra: dict[str, Any], key: str) -> str:
    values = extra.get(key)
    if not isinstance(values, list) or len(values) != 1:
        raise TokenRefused("token_not_bound", f"no single {key}")
    value = values[0]
    # A pod's name is at most 253 characters (a DNS name), its UID 36.
    if not isinstance(value, str) or not 0 < len(value) <= 253 or not value.isascii():
        raise TokenRefused("token_not_bound", f"{key} is {value!r}")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TokenRefused("token_refused", "the answer is no TokenReview")
    return value
