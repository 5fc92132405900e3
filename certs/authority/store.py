"""Keeps the signing key in the Secret `podlink-ca` of the system namespace.

Whoever creates the Secret first wins: two CAs that start together settle it by the API server's
answer (409), so there is never a second root. A Secret that exists but does not hold a working CA
stops the program; overwriting it would cut every link of the mesh.
"""

import base64
import binascii
import logging

from certs.authority.issue import Authority
from certs.authority.keys import AuthorityRefused, KeyFiles, create_root, load_authority
from certs.names import CA_SECRET
from kit.clock import Clock
from kit.kube import Kube, KubeError, Object

GENERATION_ANNOTATION = "podlink.dev/bundle-generation"
_log = logging.getLogger(__name__)


async def ensure_authority(
    kube: Kube, namespace: str, trust_domain: str, clock: Clock
) -> Authority:
    """Read the CA of this mesh, or found it. Raises AuthorityRefused or KubeError."""
    path = f"/api/v1/namespaces/{namespace}/secrets"
    try:
        secret = await kube.get(f"{path}/{CA_SECRET}")
    except KubeError as e:
        if e.status != 404:
            raise
        secret = await _found(kube, path, namespace, trust_domain, clock)
    authority = load_authority(_key_files(secret), trust_domain, _generation(secret), clock())
    _log.info(
        "certificate authority loaded",
        extra={
            "issuer": authority.issuer.subject.rfc4514_string(),
            "roots": ",".join(authority.bundle.fingerprints()),
            "generation": authority.bundle.generation,
            "expires_at": authority.issuer.not_valid_after_utc.isoformat(),
        },
    )
    return authority


async def _found(kube: Kube, path: str, namespace: str, trust_domain: str, clock: Clock) -> Object:
    files = create_root(trust_domain, clock())
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {
            "name": CA_SECRET,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "podlink"},
            "annotations": {GENERATION_ANNOTATION: "1"},
        },
        "data": {
            "tls.key": _encode(files.tls_key),
            "tls.crt": _encode(files.tls_crt),
            "ca.crt": _encode(files.ca_crt),
        },
    }
    try:
        await kube.create(path, secret)
        _log.info("created the root of this mesh")
    except KubeError as e:
        if e.status != 409:
            raise
        _log.info("another CA created the root first")
    # Read back in either case: what the API server keeps is the truth.
    return await kube.get(f"{path}/{CA_SECRET}")


def _key_files(secret: Object) -> KeyFiles:
    data = secret.get("data") or {}
    try:
        return KeyFiles(
            base64.b64decode(data["tls.key"], validate=True),
            base64.b64decode(data["tls.crt"], validate=True),
            base64.b64decode(data.get("ca.crt") or "", validate=True),
        )
    except (KeyError, TypeError, binascii.Error) as e:
        raise AuthorityRefused(
            f"Secret {CA_SECRET} must hold tls.key and tls.crt in base64 ({type(e).__name__})"
        ) from None


def _generation(secret: Object) -> int:
    raw = (secret["metadata"].get("annotations") or {}).get(GENERATION_ANNOTATION, "1")
    if not (isinstance(raw, str) and raw.isascii() and raw.isdigit() and 0 < len(raw) < 16):
        raise AuthorityRefused(f"annotation {GENERATION_ANNOTATION} is not a whole number")
    return int(raw)


def _encode(pem: bytes) -> str:
    return base64.b64encode(pem).decode("ascii")
