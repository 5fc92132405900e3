"""Service-account tokens: made by TokenRequest, judged by TokenReview; the key is this run's.

The claims are those of a bound service-account token (Kubernetes "Managing Service Accounts"): a
token is good for one audience list, until it expires, and as long as the pod it is bound to exists
with the same UID.
"""

import base64
import datetime as dt
import json
import secrets
import uuid
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256

from kit.clock import Clock, utcnow
from local.apiserver import resources
from local.apiserver.store import Store
from local.errors import ApiError
from local.objects import Object, dig, uid_of

ISSUER = "https://kubernetes.default.svc.cluster.local"
"""Also the audience of tokens for the API server itself."""
_SHORTEST_S, _DEFAULT_S, _LONGEST_S = 600, 3600, 1 << 32
_ADMIN = "kubernetes-admin"
_P256_BYTES = 32


@dataclass(frozen=True, slots=True)
class User:
    """Who asks, as TokenReview and admission reviews describe it."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def as_object(self) -> Object:
        found: Object = {"username": self.name, "groups": list(self.groups)}
        if self.uid:
            found["uid"] = self.uid
        if self.extra:
            found["extra"] = {key: list(values) for key, values in self.extra}
        return found


ADMIN = User(_ADMIN, groups=("system:masters", "system:authenticated"))
NODE = User("system:node:podlink-node", groups=("system:nodes", "system:authenticated"))
CONTROLLER = User("system:kube-controller-manager", groups=("system:authenticated",))


class TokenRefused(Exception):
    """The token proves nothing; the message says why, without the token."""


class Tokens:
    """Makes and judges tokens against the objects in `store`."""

    def __init__(self, store: Store, clock: Clock = utcnow) -> None:
        self._store, self._clock = store, clock
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.admin_token = secrets.token_urlsafe(32)

    def authenticate(self, token: str) -> User:
        """Who a bearer of `token` is to the API server. Raises TokenRefused."""
        if secrets.compare_digest(token.encode(), self.admin_token.encode()):
            return ADMIN
        return self._judge(token, (ISSUER,))[0]

    def request(self, namespace: str, name: str, body: Object) -> Object:
        """Answer POST .../serviceaccounts/<name>/token. Raises ApiError naming the field."""
        account = self._store.get(resources.SERVICE_ACCOUNTS.key, namespace, name)
        if account is None:
            raise ApiError(404, "NotFound", f'serviceaccounts "{name}" not found')
        spec = body.get("spec") or {}
        audiences = spec.get("audiences") or [ISSUER]
        lifetime_s = spec.get("expirationSeconds") or _DEFAULT_S
        if not isinstance(lifetime_s, int) or not _SHORTEST_S <= lifetime_s <= _LONGEST_S:
            raise ApiError(
                422,
                "Invalid",
                f"spec.expirationSeconds: Invalid value: {lifetime_s!r}: must be a whole number "
                f"from {_SHORTEST_S} to {_LONGEST_S}",
            )
        pod = self._bound_pod(namespace, name, spec.get("boundObjectRef"))
        now = self._clock()
        expires = now + dt.timedelta(seconds=lifetime_s)
        kubernetes: Object = {
            "namespace": namespace,
            "serviceaccount": {"name": name, "uid": uid_of(account)},
        }
        if pod is not None:
            kubernetes["pod"] = {"name": pod["metadata"]["name"], "uid": uid_of(pod)}
            if node := dig(pod, "spec", "nodeName"):
                kubernetes["node"] = {"name": node}
        claims = {
            "aud": audiences,
            "exp": int(expires.timestamp()),
            "iat": int(now.timestamp()),
            "nbf": int(now.timestamp()),
            "iss": ISSUER,
            "jti": str(uuid.uuid4()),
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "kubernetes.io": kubernetes,
        }
        status = {
            "token": self._sign(claims),
            "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**spec, "audiences": audiences, "expirationSeconds": lifetime_s},
            "status": status,
        }

    def review(self, body: Object) -> Object:
        """Answer a TokenReview: the same object with its status filled in."""
        spec = body.get("spec") or {}
        wanted = tuple(spec.get("audiences") or (ISSUER,))
        status: Object
        try:
            user, audiences = self._judge(str(spec.get("token") or ""), wanted)
            status = {"authenticated": True, "user": user.as_object(), "audiences": audiences}
        except TokenRefused as e:
            status = {"authenticated": False, "user": {}, "error": str(e)}
        shown = {key: value for key, value in spec.items() if key != "token"}
        return {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "metadata": {},
            "spec": shown,
            "status": status,
        }

    def _bound_pod(self, namespace: str, account: str, ref: Any) -> Object | None:
        if not ref:
            return None
        if ref.get("kind") != "Pod":
            raise ApiError(422, "Invalid", "spec.boundObjectRef.kind: only Pod is supported here")
        pod = self._store.get(resources.PODS.key, namespace, str(ref.get("name")))
        if pod is None:
            raise ApiError(404, "NotFound", f'pods "{ref.get("name")}" not found')
        if ref.get("uid") not in (None, "", uid_of(pod)):
            raise ApiError(409, "Conflict", "spec.boundObjectRef.uid: not the pod's UID")
        if dig(pod, "spec", "serviceAccountName") != account:
            raise ApiError(403, "Forbidden", "the pod runs as another service account")
        return pod

    def _judge(self, token: str, wanted: tuple[str, ...]) -> tuple[User, list[str]]:
        claims = self._read(token)
        now = self._clock().timestamp()
        if not claims["nbf"] - 1 <= now < claims["exp"]:
            raise TokenRefused("token has expired or is not valid yet")
        audiences = [a for a in wanted if a in claims["aud"]]
        if not audiences:
            raise TokenRefused(f"token audiences {claims['aud']} do not match {list(wanted)}")
        bound = claims["kubernetes.io"]
        namespace, account = bound["namespace"], bound["serviceaccount"]
        self._check_alive(resources.SERVICE_ACCOUNTS.key, namespace, account, "service account")
        extra = [("authentication.kubernetes.io/credential-id", (f"JTI={claims['jti']}",))]
        if "node" in bound:
            extra.append(("authentication.kubernetes.io/node-name", (bound["node"]["name"],)))
        if "pod" in bound:
            self._check_alive(resources.PODS.key, namespace, bound["pod"], "pod")
            extra.append(("authentication.kubernetes.io/pod-name", (bound["pod"]["name"],)))
            extra.append(("authentication.kubernetes.io/pod-uid", (bound["pod"]["uid"],)))
        groups = (
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
            "system:authenticated",
        )
        return User(claims["sub"], account["uid"], groups, tuple(extra)), audiences

    def _check_alive(
        self, key: tuple[str, str], namespace: str, ref: dict[str, str], what: str
    ) -> None:
        found = self._store.get(key, namespace, ref["name"])
        if found is None or uid_of(found) != ref["uid"]:
            raise TokenRefused(f"the {what} this token is bound to no longer exists")

    def _sign(self, claims: Object) -> str:
        head = {"alg": "ES256", "kid": "podlink-local", "typ": "JWT"}
        signed = f"{_encode(json.dumps(head).encode())}.{_encode(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(SHA256())))
        raw = r.to_bytes(_P256_BYTES, "big") + s.to_bytes(_P256_BYTES, "big")
        return f"{signed}.{_encode(raw)}"

    def _read(self, token: str) -> Object:
        try:
            signed, _, signature = token.rpartition(".")
            raw = _decode(signature)
            if len(raw) != 2 * _P256_BYTES:
                raise ValueError("signature length")
            r, s = (int.from_bytes(half, "big") for half in (raw[:32], raw[32:]))
            der = encode_dss_signature(r, s)
            self._key.public_key().verify(der, signed.encode(), ec.ECDSA(SHA256()))
            claims: Object = json.loads(_decode(signed.split(".")[1]))
        except (ValueError, IndexError, InvalidSignature) as e:
            raise TokenRefused("not a token of this cluster") from e
        return claims


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
