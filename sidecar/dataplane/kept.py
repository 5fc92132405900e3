"""The tunnels that peers keep with us, counted by where they come from."""

from collections.abc import Iterator
from typing import Protocol, TypeVar


class Tunnelled(Protocol):
    """An inbound tunnel, as far as it matters here."""

    @property
    def peer_ip(self) -> str: ...


T = TypeVar("T", bound=Tunnelled)


class Kept(dict[T, None]):
    """A set in the order of coming that knows how many of its members one address has."""

    def __init__(self) -> None:
        super().__init__()
        self._by_ip: dict[str, int] = {}

    def add(self, tunnel: T) -> None:
        if tunnel not in self:
            self[tunnel] = None
            self._by_ip[tunnel.peer_ip] = self._by_ip.get(tunnel.peer_ip, 0) + 1

    def discard(self, tunnel: T) -> None:
        if tunnel in self:
            del self[tunnel]
            left = self._by_ip[tunnel.peer_ip] - 1
            if left:
                self._by_ip[tunnel.peer_ip] = left
            else:
                del self._by_ip[tunnel.peer_ip]

    def of(self, ip: str) -> int:
        """How many come from this address."""
        return self._by_ip.get(ip, 0)

    def crowds(self, more_than: int) -> Iterator[str]:
        """The addresses that have more than so many."""
        return (ip for ip, count in list(self._by_ip.items()) if count > more_than)
