"""Answers the names of Services and pods (Kubernetes DNS specification 1.1), and no others.

`Names.find` is pure given the store: a name in, addresses out. What is not of this cluster does not
exist: nothing is asked of the outside.
"""

import asyncio
import ipaddress
import struct
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from kit.tasks import spawn
from local.apiserver import resources
from local.apiserver.forward import slices_of
from local.apiserver.store import Store
from local.node.network import DNS_IP
from local.objects import Object, dig

DOMAIN = "cluster.local"
_TTL_S = 5
_TCP_IDLE_S = 10.0
_TYPES = {"A": "IPv4", "AAAA": "IPv6"}


class Names:
    """The names of one cluster."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, name: str, kind: str) -> list[str] | None:
        """Addresses of a name, [] if it has none of this kind, None if there is no such name."""
        labels = name.lower().rstrip(".").split(".")
        if labels[-3:] != ["svc", *DOMAIN.split(".")] or len(labels) not in (5, 6):
            return [] if labels == DOMAIN.split(".") else None
        *host, service_name, namespace = labels[:-3]
        service = self._store.get(resources.SERVICES.key, namespace, service_name)
        if service is None:
            return None
        if dig(service, "spec", "type") == "ExternalName":
            return None if host else self._alias(service["spec"]["externalName"], kind)
        addresses = [ip for ip in dig(service, "spec", "clusterIPs", default=[]) if ip != "None"]
        if addresses:
            if host:
                return None
            return [ip for ip in addresses if (":" in ip) == (kind == "AAAA")]
        return self._headless(service, host[0] if host else "", kind)

    def _alias(self, name: str, kind: str) -> list[str] | None:
        """Addresses of what an ExternalName stands for. Names outside the cluster are not asked for,
        but one may be an address, which a resolver takes as it is."""
        try:
            address = str(ipaddress.ip_address(name))
        except ValueError:
            return self.find(name, kind) if name.endswith(f".{DOMAIN}") else None
        return [address] if (":" in address) == (kind == "AAAA") else []

    def _headless(self, service: Object, host: str, kind: str) -> list[str] | None:
        metadata = service["metadata"]
        matched, found = not host, []
        for one in slices_of(self._store, metadata["namespace"], metadata["name"]):
            for endpoint in one.get("endpoints") or ():
                if not endpoint["conditions"]["ready"] or host not in (
                    "",
                    endpoint.get("hostname", ""),
                ):
                    continue
                matched = True
                if one["addressType"] == _TYPES.get(kind):
                    found.extend(endpoint["addresses"])
        return found if matched else None

    def answer(self, packet: bytes) -> bytes:
        """The response to a query. Raises dns.exception.DNSException for what is none."""
        query = dns.message.from_wire(packet)
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.AA
        if len(query.question) != 1:
            response.set_rcode(dns.rcode.FORMERR)
            return response.to_wire()
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        addresses = self.find(question.name.to_text(), kind)
        if addresses is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif addresses and kind in _TYPES:
            rrset = dns.rrset.from_text_list(
                question.name, _TTL_S, dns.rdataclass.IN, question.rdtype, addresses
            )
            response.answer.append(rrset)
        return response.to_wire()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, names: Names) -> None:
        self._names = names

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            self._transport.sendto(self._names.answer(data), addr)
        except (dns.exception.DNSException, struct.error):
            return  # not a query: there is nobody to answer


async def _stream(names: Names, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            async with asyncio.timeout(_TCP_IDLE_S):
                size = int.from_bytes(await reader.readexactly(2), "big")
                answer = names.answer(await reader.readexactly(size))
            writer.write(len(answer).to_bytes(2, "big") + answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, TimeoutError, OSError, dns.exception.DNSException):
        pass
    finally:
        writer.close()


async def serve(store: Store, address: str, port: int = 53) -> None:
    """Answer on UDP and TCP at `address` until the process ends."""
    names = Names(store)
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: _Datagrams(names), local_addr=(address, port))

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spawn(_stream(names, reader, writer), name="dns-tcp")

    await asyncio.start_server(take, address, port)


def resolv_conf(namespace: str) -> str:
    """A pod's /etc/resolv.conf under dnsPolicy ClusterFirst."""
    search = f"{namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}"
    options = "ndots:5 timeout:1 attempts:3 single-request"
    return f"nameserver {DNS_IP}\nsearch {search}\noptions {options}\n"
