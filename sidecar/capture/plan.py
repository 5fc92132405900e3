"""What the pod's firewall must say, as text for `nft -f`. Pure.

One table of our own, of family inet, so that IPv4 and IPv6 stand or fall together and nobody else's
rules are touched. Loading it deletes and makes it anew in one transaction: running twice changes
nothing, and there is no moment without rules (nft(8), "ATOMICITY").

Outward, a connection passes untouched if the proxy itself made it (by UID and GID; where only one UID
exists, on a laptop, by socket mark and by the control plane's ports), if it stays on 127.0.0.0/8 or
::1, or if its port or subnet is skipped; the pod's own IP is captured like any other, so that a pod
that calls itself leaves a record.
Inward, only what comes from another network namespace is captured, and never our health port.

To the app, what the proxy has bound to a stand-in (`sidecar.source_address`) gets the source that it
stands for, so that the app sees its peer. Nobody but the proxy may use stand-ins, nothing with one
leaves the pod, and nothing reaches the app with one: what no rule has translated is dropped. What comes
from outside never gets into a connection that the app sees as its peer's.
"""

import ipaddress
from dataclasses import dataclass
from typing import Literal

from kit.contract import (
    CA_PORT,
    CANARIES,
    HEALTH_PORT,
    INBOUND_PORT,
    MAX_SKIPPED_PORTS,
    OTLP_GRPC_PORT,
    OUTBOUND_PORT,
    PROXY_GID,
    PROXY_MARK,
    PROXY_UID,
    REGISTRY_PORT,
)
from kit.ports import NO_PORTS, PortSet
from kit.skipped import too_much
from sidecar.source_address import PREFIXES6, RANGES, prefixes4

TABLE = "podlink"
CONTROL_PORTS = (CA_PORT, REGISTRY_PORT, OTLP_GRPC_PORT)
STRAYS_PRIORITY = -150
"""After connection tracking (-200), which says what is invalid, and before any destination is rewritten
(-100): ports are still those that were dialled."""
SOURCE_PRIORITY = 90
"""Before everybody else's source NAT (srcnat is 100): the first to translate a connection has it."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class CapturePlan:
    exempt_by: Literal["uid", "mark"] = "uid"
    skip_inbound: PortSet = NO_PORTS
    skip_outbound: PortSet = NO_PORTS
    skip_subnets: tuple[Network, ...] = ()
    show_source: bool = True
    """Whether the app is to see its peer's address instead of the pod's own."""

    def ruleset(self) -> str:
        """The text for `nft -f -`."""
        return "\n".join(
            (
                f"table inet {TABLE}",
                f"delete table inet {TABLE}",
                f"table inet {TABLE} {{",
                "  chain outbound {",
                "    type nat hook output priority -100; policy accept;",
                *(f"    {rule}" for rule in self._outbound()),
                "  }",
                "  chain inbound {",
                "    type nat hook prerouting priority -100; policy accept;",
                *(f"    {rule}" for rule in self._inbound()),
                "  }",
                *((*self._strays(), *self._source()) if self.show_source else ()),
                "}",
                "",
            )
        )

    def _outbound(self) -> list[str]:
        # First of all the canary, whoever dials it: so the proxy itself can see that we are here.
        rules = ["meta l4proto != tcp accept"]
        for family, version in (("ip", 4), ("ip6", 6)):
            ip, port = CANARIES[version]
            rules.append(f"{family} daddr {ip} tcp dport {port} redirect to :{OUTBOUND_PORT}")
        if self.show_source:
            rules += _to_stand_ins()
        rules.append(f"{self._by_proxy} accept")
        if self.exempt_by == "mark":
            # gRPC offers no way to mark its sockets, so where marks must do, what goes to the control
            # plane's ports is exempt whoever sends it.
            rules.append(f"tcp dport {{ {', '.join(map(str, CONTROL_PORTS))} }} accept")
        rules += ["ip daddr 127.0.0.0/8 accept", "ip6 daddr ::1 accept"]
        if self.skip_outbound:
            rules.append(f"tcp dport {{ {_ports(self.skip_outbound)} }} accept")
        for family, version in (("ip", 4), ("ip6", 6)):
            networks = sorted(str(n) for n in self.skip_subnets if n.version == version)
            if networks:
                rules.append(f"{family} daddr {{ {', '.join(networks)} }} accept")
        return [*rules, f"tcp dport 0-65535 redirect to :{OUTBOUND_PORT}"]

    def _inbound(self) -> list[str]:
        rules = [
            'iifname "lo" accept',
            "fib daddr type != local accept",
            *(_to_stand_ins() if self.show_source else ()),
            f"tcp dport {HEALTH_PORT} accept",
        ]
        if self.skip_inbound:
            rules.append(f"tcp dport {{ {_ports(self.skip_inbound)} }} accept")
        return [*rules, f"tcp dport 0-65535 redirect to :{INBOUND_PORT}"]

    @property
    def _by_proxy(self) -> str:
        if self.exempt_by == "uid":
            return f"meta skuid {PROXY_UID} meta skgid {PROXY_GID}"
        return f"meta mark {PROXY_MARK:#x}"

    def _strays(self) -> list[str]:
        """What comes from outside and would get into a connection between the proxy and the app.

        The app's end has its peer's address and port. What connection tracking calls invalid is not
        redirected, so a segment with the peer's address and another sequence number than the tunnel's
        would be the app's to judge, by its numbers alone: in plaintext, beside the tunnel.
        """
        rules = [
            'iifname "lo" accept',
            f"ip saddr {RANGES[4]} drop",
            f"ip6 saddr {RANGES[6]} drop",
            f"tcp dport {HEALTH_PORT} accept",
        ]
        if self.skip_inbound:
            rules.append(f"tcp dport {{ {_ports(self.skip_inbound)} }} accept")
        return [
            "  chain strays {",
            f"    type filter hook prerouting priority {STRAYS_PRIORITY}; policy accept;",
            *(f"    {rule}" for rule in rules),
            "    meta l4proto tcp ct state invalid drop",
            "  }",
        ]

    def _source(self) -> list[str]:
        """Chains that turn stand-ins into what they stand for."""
        four, six = RANGES[4], RANGES[6]
        standing6 = ", ".join(f"{standing} : {real}" for standing, real in PREFIXES6.items())
        return [
            "  chain shown4 {",
            *(
                f"    ip dscp {dscp} snat ip prefix to ip saddr map {{ {four} : {real} }}"
                for dscp, real in prefixes4()
            ),
            "  }",
            "  chain shown6 {",
            f"    snat ip6 prefix to ip6 saddr map {{ {standing6} }}",
            "  }",
            "  chain source {",
            f"    type nat hook postrouting priority {SOURCE_PRIORITY}; policy accept;",
            f'    oifname "lo" meta l4proto tcp {self._by_proxy} ip saddr {four} jump shown4',
            f'    oifname "lo" meta l4proto tcp {self._by_proxy} ip6 saddr {six} jump shown6',
            f"    ip saddr {four} drop",
            f"    ip6 saddr {six} drop",
            "  }",
        ]


def _to_stand_ins() -> list[str]:
    """Nobody connects to a stand-in; they are local only so that answers to them are."""
    return [f"ip daddr {RANGES[4]} drop", f"ip6 daddr {RANGES[6]} drop"]


def bounded(plan: CapturePlan) -> CapturePlan:
    """The plan; raises ValueError if it skips more than an annotation may ask for.

    The injector has looked already. But a pod that was made by hand while the injector was away, or
    whose annotation for the CNI plugin was changed after it, has met nobody yet who counts.
    """
    for ports in (plan.skip_inbound, plan.skip_outbound):
        if ports.count() > MAX_SKIPPED_PORTS:
            raise ValueError(f"{ports.count()} ports are skipped, more than {MAX_SKIPPED_PORTS}")
    if why := too_much(plan.skip_subnets):
        raise ValueError(f"subnets that are skipped: {why}")
    return plan


def _ports(ports: PortSet) -> str:
    return str(ports).replace(",", ", ")


def parse_subnets(text: str) -> tuple[Network, ...]:
    """`10.0.0.0/8, fd00::/8`; raises ValueError naming the item that is no network."""
    found: list[Network] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(ipaddress.ip_network(item))
        except ValueError as e:
            raise ValueError(f"{item!r} is no subnet such as 10.0.0.0/8: {e}") from e
    return tuple(found)
