"""Who a workload is. The one place that reads or writes a SPIFFE ID.

The form is `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`; every part is held to the
Kubernetes rule for its name, which is stricter than SPIFFE's alphabet. Comparison is by whole
names, byte for byte: no patterns, no case folding, no decoding.
(SPIFFE-ID standard, sections 2 and 3; Kubernetes "Object Names and IDs".)
"""

import re
from dataclasses import dataclass
from typing import Self

MAX_TRUST_DOMAIN_BYTES = 255
MAX_ID_BYTES = 2048
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DNS = rf"{_LABEL}(\.{_LABEL})*"
_TRUST_DOMAIN = re.compile(_DNS, re.ASCII)
_ID = re.compile(rf"spiffe://(?P<td>{_DNS})/ns/(?P<ns>{_LABEL})/sa/(?P<sa>{_DNS})", re.ASCII)
_MAX_SERVICE_ACCOUNT = 253


class IdentityMalformed(ValueError):
    """The text is no workload identity of ours. The message is escaped and cut short."""

    def __init__(self, raw: str) -> None:
        super().__init__(f"not a workload identity: {raw[:256]!r}")


@dataclass(frozen=True, slots=True, order=True)
class WorkloadIdentity:
    """One workload's name. Its parts were checked, however it was made (IdentityMalformed)."""

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        # Parts with a slash in them could be put together into somebody else's name.
        if _read(str(self)) != (self.trust_domain, self.namespace, self.service_account):
            raise IdentityMalformed(str(self))

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Read a SPIFFE ID; raises IdentityMalformed for anything but exactly our form."""
        parts = _read(uri)
        if parts is None:
            raise IdentityMalformed(uri)
        return cls(*parts)

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


def check_trust_domain(name: str) -> str:
    """Return `name` if it can be a trust domain, else raise IdentityMalformed."""
    if len(name) > MAX_TRUST_DOMAIN_BYTES or _TRUST_DOMAIN.fullmatch(name) is None:
        raise IdentityMalformed(name)
    return name


def _read(uri: str) -> tuple[str, str, str] | None:
    found = _ID.fullmatch(uri) if len(uri) <= MAX_ID_BYTES else None
    if (
        found is None
        or len(found["td"]) > MAX_TRUST_DOMAIN_BYTES
        or len(found["sa"]) > _MAX_SERVICE_ACCOUNT
    ):
        return None
    return found["td"], found["ns"], found["sa"]
