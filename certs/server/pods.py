"""Judges the caller's pod: is it the one the token names, and which addresses are its own? Pure.

The pod comes from the API server by name, so its UID is compared: a pod that was replaced by one of
the same name lends it nothing.
"""

import ipaddress
import urllib.parse
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from certs.authority.issue import canonical_ips
from certs.server.members import carries_proxy
from certs.server.refusals import CallerForbidden, CannotAnswer
from certs.server.review import Caller
from kit.addresses import canonical_ip

_FINISHED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class PodSeen:
    """What the API says of the caller's pod. `ips` is empty while the kubelet has not reported."""

    node: str
    host_network: bool
    ips: frozenset[str]
    host_ips: frozenset[str]
    has_proxy: bool = False
    """Its spec carries our proxy (`certs.server.members`)."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses for the leaf. `provisional`: the API server did not know them, so not for long."""

    ips: frozenset[str]
    provisional: bool


def read_pod(pod: Any, caller: Caller, images: Collection[str] = ()) -> PodSeen:
    """Check that `pod` is the caller's and lives; raises CallerForbidden. `images` are those that a
    proxy's may be of; empty: any."""
    try:
        metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
        uid, account = metadata["uid"], spec.get("serviceAccountName") or "default"
        seen = PodSeen(
            node=str(spec.get("nodeName") or ""),
            host_network=bool(spec.get("hostNetwork")),
            ips=_addresses(status, "podIPs", "podIP"),
            host_ips=_addresses(status, "hostIPs", "hostIP"),
            has_proxy=carries_proxy(spec, images),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise CallerForbidden("pod_malformed", f"{type(e).__name__}: {e}") from e
    if uid != caller.pod_uid:
        raise CallerForbidden("pod_replaced", f"the pod has UID {uid}")
    if account != caller.identity.service_account:
        raise CallerForbidden("pod_account", f"the pod runs as {account}")
    phase = status.get("phase")
    if isinstance(phase, str) and phase in _FINISHED:
        raise CallerForbidden("pod_finished", phase)
    return seen


def choose_addresses(pod: PodSeen) -> Addresses:
    """Which addresses go into the leaf of a pod: those that the API server knows, and never that of
    whoever calls. A pod on its node's network has none of its own.
    """
    if pod.host_network:
        return Addresses(frozenset(), provisional=False)
    return Addresses(pod.ips, provisional=not pod.ips)


def check_source(pod: PodSeen, source_ip: str) -> None:
    """Raise CallerForbidden if a call with this pod's token came from somewhere else.

    From the pod's node it may come: a node that masquerades puts its own address there (the record
    then says `direct` false). (docs/threat-model.md, attack 29.)
    """
    allowed = pod.host_ips if pod.host_network else pod.ips | pod.host_ips
    if pod.ips and source_ip not in allowed:
        raise CallerForbidden("token_elsewhere", f"the call came from {source_ip or 'nowhere'}")


def check_placed(pod: PodSeen, source_ip: str) -> None:
    """Raise CannotAnswer while nobody knows the pod's addresses, unless its node calls for it: the leaf
    would carry the address of whoever shows its token. The kubelet reports them in a second or two.
    """
    if not pod.ips and source_ip not in pod.host_ips:
        raise CannotAnswer("pod_address_unknown", f"the call came from {source_ip or 'nowhere'}")


def read_peer(peer: str) -> str:
    """The address in gRPC's name of a peer, such as `ipv6:[fd00::7]:52044`; "" if there is none."""
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]")
    try:
        return canonical_ip(ipaddress.ip_address(host)) if kind in ("ipv4", "ipv6") else ""
    except ValueError:
        return ""


def _addresses(status: dict[str, Any], many: str, one: str) -> frozenset[str]:
    listed = [entry["ip"] for entry in status.get(many) or ()]
    texts = listed or [ip for ip in (status.get(one),) if ip]
    if not all(isinstance(text, str) for text in texts):  # a number would be read as an address
        raise TypeError("an address is no text")
    return canonical_ips(texts)
