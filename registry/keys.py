"""What a sidecar may ask for: an address, one port of an address, a Service, or a pod behind a headless
Service. Pure."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from kit.addresses import canonical_ip
from kit.checked import shown

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"((?P<pod>{_LABEL})\.)?(?P<service>{_LABEL}\.{_LABEL})", re.ASCII)
_IP_PORT = re.compile(
    r"(\[(?P<ip6>[0-9a-f:.]+)\]|(?P<ip4>[0-9.]+)):(?P<port>[1-9][0-9]{0,4})", re.ASCII
)
_MAX_KEY = 253
_RANGE = "range/"
_MAX_PORT = 65535


def range_topic(network: IPv4Network | IPv6Network) -> str:
    """Stands for every address of the range."""
    return f"{_RANGE}{network}"


def topic_network(topic: str) -> IPv4Network | IPv6Network | None:
    """The range that `range_topic` made the topic of; None for any other."""
    return ip_network(topic[len(_RANGE) :]) if topic.startswith(_RANGE) else None


def is_ip(topic: str) -> bool:
    """Whether the topic is an address."""
    try:
        ip_address(topic)
    except ValueError:
        return False
    return True


def port_topic(port: int) -> str:
    """What changes with the answer for this port of any address."""
    return f":{port}"


class KeyMalformed(ValueError):
    """The key has none of the four forms."""

    reason = "key_malformed"


@dataclass(frozen=True, slots=True)
class Key:
    """`topic` is what changes with the answer; `pod` is set for a pod behind a Service, `port` for one
    port of an address."""

    text: str
    topic: str
    is_ip: bool
    pod: str = ""
    port: int = 0

    @property
    def topics(self) -> tuple[str, ...]:
        """All that changes with the answer."""
        return (self.topic, port_topic(self.port)) if self.port else (self.topic,)

    @classmethod
    def parse(cls, text: str) -> "Key":
        """Read one key of `Subscribe`. Raises KeyMalformed."""
        if len(text) <= _MAX_KEY:
            try:
                return cls(text, canonical_ip(text), is_ip=True)
            except ValueError:
                pass
            if (name := _NAME.fullmatch(text)) is not None:
                return cls(text, name["service"], is_ip=False, pod=name["pod"] or "")
            if (found := _IP_PORT.fullmatch(text)) is not None:
                return cls._of_port(text, found["ip6"] or found["ip4"], int(found["port"]))
        raise KeyMalformed(f"neither an IP nor a Service name: {shown(text)}")

    @classmethod
    def _of_port(cls, text: str, ip: str, port: int) -> "Key":
        try:
            if port <= _MAX_PORT:
                return cls(text, canonical_ip(ip), is_ip=True, port=port)
        except ValueError:
            pass
        raise KeyMalformed(f"no address and port: {shown(text)}")
