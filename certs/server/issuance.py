"""A record of each certificate issued: what a security team asks for after the fact."""

import datetime as dt
import logging
from dataclasses import dataclass

from certs.authority.issue import Issued, Order
from certs.server.pods import Addresses, PodSeen
from certs.server.review import Caller

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Issuance:
    """Who got which certificate, where and for how long. Holds no secret."""

    at: dt.datetime
    identity: str
    namespace: str
    pod_name: str
    pod_uid: str
    node: str
    serial: str
    issuer: str
    """SHA-256 of the certificate that signed it, hex."""
    issuer_name: str
    """Its subject."""
    sha256: str
    ips: tuple[str, ...]
    dns_names: tuple[str, ...]
    not_before: dt.datetime
    not_after: dt.datetime
    source_ip: str
    direct: bool
    """The call came from one of the pod's own addresses: a token used elsewhere shows here."""
    provisional: bool


def describe(
    caller: Caller,
    pod: PodSeen,
    addresses: Addresses,
    order: Order,
    issued: Issued,
    source_ip: str,
    now: dt.datetime,
) -> Issuance:
    """Put the record together from what each step of admission found."""
    own = pod.host_ips if pod.host_network else addresses.ips
    return Issuance(
        at=now,
        identity=str(caller.identity),
        namespace=caller.identity.namespace,
        pod_name=caller.pod_name,
        pod_uid=caller.pod_uid,
        node=pod.node or caller.node_name,
        serial=issued.facts.serial,
        issuer=issued.issuer_sha256,
        issuer_name=issued.issuer_name,
        sha256=issued.facts.sha256,
        ips=tuple(sorted(addresses.ips)),
        dns_names=order.dns_names,
        not_before=issued.facts.not_before,
        not_after=issued.facts.not_after,
        source_ip=source_ip,
        direct=source_ip in own,
        provisional=addresses.provisional,
    )


def log_issuance(issuance: Issuance) -> None:
    """Report as one log line."""
    _log.info(
        "certificate issued",
        extra={
            "identity": issuance.identity,
            "pod": f"{issuance.namespace}/{issuance.pod_name}",
            "pod_uid": issuance.pod_uid,
            "node": issuance.node,
            "serial": issuance.serial,
            "issuer": issuance.issuer,
            "sha256": issuance.sha256,
            "ips": ",".join(issuance.ips),
            "dns_names": ",".join(issuance.dns_names),
            "not_after": issuance.not_after.isoformat(),
            "source_ip": issuance.source_ip,
            "direct": issuance.direct,
            "provisional": issuance.provisional,
        },
    )
