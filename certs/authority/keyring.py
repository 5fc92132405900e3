"""The signing keys and certificates of a CA with the state of a rotation: one value, stored whole.

Every step of a rotation makes a new keyring out of the old one, and one guarded write puts it in its
place. The key that goes is kept until its rotation has ended, so that it can be aborted.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority.issue import Authority
from certs.authority.keys import AuthorityRefused, KeyFiles, load_authority
from certs.rotation import Move, Phase, Rotation, RotationMalformed
from certs.trust.bundle import BundleRefused, TrustBundle

GENERATION = "generation"
_ROTATION = "rotation"
_ORDER = "order-done"
_SAID = "order-said"


@dataclass(frozen=True, slots=True)
class Keyring:
    """`current` signs. `other` is the signer that comes (PUBLISHING) or goes (SIGNING, RETURNING);
    there is one exactly while there is a rotation."""

    current: KeyFiles
    generation: int = 1
    """Of the bundle; grows by one with every change of the set of roots."""
    other: KeyFiles | None = None
    rotation: Rotation | None = None
    order_done: str = ""
    """The id of the last order that was carried out or refused, and what was said to it."""
    order_said: str = ""

    # --- what it makes ----------------------------------------------------------------------

    def bundle(self, trust_domain: str) -> TrustBundle:
        """Every published root, in an order that no step changes. Raises AuthorityRefused."""
        found: dict[bytes, None] = {}
        for files in (self.current, self.other):
            if files is not None:
                found.update(dict.fromkeys(roots_of(files, trust_domain)))
        try:
            return TrustBundle.of(trust_domain, self.generation, sorted(found))
        except BundleRefused as e:
            raise AuthorityRefused(str(e)) from e

    def authority(self, trust_domain: str, now: dt.datetime) -> Authority:
        """What can sign, with the whole bundle; raises AuthorityRefused if anything does not fit,
        the other signer included."""
        made = load_authority(self.current, trust_domain, self.generation, now)
        if (self.other is None) != (self.rotation is None):
            raise AuthorityRefused("a second signer belongs to a rotation, and a rotation to it")
        if self.other is not None:
            load_authority(self.other, trust_domain, self.generation, now)
        return replace(made, bundle=self.bundle(trust_domain))

    # --- the steps --------------------------------------------------------------------------

    def moved(self, move: Move, coming: KeyFiles | None = None) -> "Keyring":
        """The keyring after `move` of `certs.rotation.decide`; `coming` is the new signer
        for its first step."""
        if not move.moves:
            return replace(self, rotation=move.rotation)
        match move.to:
            case Phase.PUBLISHING:
                assert coming is not None and self.other is None
                return replace(
                    self, other=coming, rotation=move.rotation, generation=self.generation + 1
                )
            case Phase.SIGNING | Phase.RETURNING:
                assert self.other is not None
                return replace(self, current=self.other, other=self.current, rotation=move.rotation)
            case _:
                return replace(self, other=None, rotation=None, generation=self.generation + 1)

    def answered(self, order_id: str, said: str) -> "Keyring":
        return replace(self, order_done=order_id, order_said=said[:2048])

    # --- as it is stored --------------------------------------------------------------------

    def to_data(self) -> dict[str, bytes]:
        """The entries of a `kubernetes.io/tls` Secret; `tls.*` and `ca.crt` mean what they always
        do, the rest is ours."""
        data = {
            "tls.key": self.current.tls_key,
            "tls.crt": self.current.tls_crt,
            "ca.crt": self.current.ca_crt,
            GENERATION: str(self.generation).encode(),
        }
        if self.other is not None and self.rotation is not None:
            data["other.key"], data["other.crt"] = self.other.tls_key, self.other.tls_crt
            data["other-ca.crt"] = self.other.ca_crt
            data[_ROTATION] = self.rotation.to_json().encode()
        if self.order_done:
            data[_ORDER], data[_SAID] = self.order_done.encode(), self.order_said.encode()
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, bytes]) -> "Keyring":
        """Raises AuthorityRefused naming the entry; nothing is checked beyond the form."""
        for name in ("tls.key", "tls.crt"):
            if name not in data:
                raise AuthorityRefused(f"{name} is missing")
        raw_rotation, other = data.get(_ROTATION), None
        if "other.key" in data or raw_rotation:
            other = KeyFiles(
                data.get("other.key", b""),
                data.get("other.crt", b""),
                data.get("other-ca.crt", b""),
            )
        try:
            rotation = Rotation.from_json(raw_rotation.decode()) if raw_rotation else None
        except (RotationMalformed, UnicodeDecodeError) as e:
            raise AuthorityRefused(f"{_ROTATION}: {e}") from e
        return cls(
            current=KeyFiles(data["tls.key"], data["tls.crt"], data.get("ca.crt", b"")),
            generation=_generation(data.get(GENERATION, b"1")),
            other=other,
            rotation=rotation,
            order_done=data.get(_ORDER, b"").decode("utf-8", "replace")[:64],
            order_said=data.get(_SAID, b"").decode("utf-8", "replace")[:2048],
        )


def check_successor(now: Keyring, then: Keyring, trust_domain: str) -> None:
    """Raise AuthorityRefused unless `then` may follow `now` in a CA that runs.

    Roots change only with a higher generation: a Secret that somebody overwrote, or that came back
    out of a backup, would cut the mesh in two.
    """
    if then.generation < now.generation:
        raise AuthorityRefused(
            f"its bundle is of generation {then.generation}, older than {now.generation} in use"
        )
    old, new = now.bundle(trust_domain), then.bundle(trust_domain)
    if then.generation == now.generation and old.roots != new.roots:
        raise AuthorityRefused(
            "its roots differ from those in use; a root is replaced by `podlink rotate root`"
        )


def roots_of(files: KeyFiles, trust_domain: str) -> tuple[bytes, ...]:
    """The roots under which this signer's leaves verify, DER; raises AuthorityRefused."""
    try:
        pem = files.ca_crt
        if not pem:
            last = x509.load_pem_x509_certificates(files.tls_crt)[-1]
            pem = last.public_bytes(Encoding.PEM)
        return TrustBundle.from_pem(trust_domain, 0, pem).roots
    except (BundleRefused, ValueError) as e:
        raise AuthorityRefused(f"ca.crt, or the end of tls.crt: {e}") from e


def issuer_of(files: KeyFiles) -> x509.Certificate:
    """The certificate whose key signs; raises AuthorityRefused."""
    try:
        return x509.load_pem_x509_certificates(files.tls_crt)[0]
    except ValueError as e:
        raise AuthorityRefused(f"tls.crt holds no PEM certificates: {e}") from e


def _generation(raw: bytes) -> int:
    if not (raw.isdigit() and 0 < len(raw) < 16):
        raise AuthorityRefused(f"{GENERATION} is not a whole number")
    return int(raw)
