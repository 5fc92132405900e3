"""What the bench asks of a pair of proxies: start and stop it, and say where it is.

    load -> near -> (TLS 1.3, mutual) -> far -> app

`near` is the proxy beside the load, `far` the one beside the app. A new kind of proxy is one
subclass of `Proxy` that gives the two command lines.
"""

import abc
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.certificates import Certificates
from bench.processes import Child, Cpus

Address = tuple[str, int]


def free_address() -> Address:
    """A loopback port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host, port = probe.getsockname()
        return host, port


def text(address: Address) -> str:
    """`host:port`, as command lines want it."""
    return f"{address[0]}:{address[1]}"


@dataclass(frozen=True)
class Site:
    """What every pair is given: the same app, certificates, CPUs and folder for its files."""

    app: Address
    certificates: Certificates
    cpus: Cpus
    folder: Path
    sink: Address
    """Where podlink's sidecars export their spans (OTLP over gRPC, no TLS)."""


class Proxy(abc.ABC):
    """A pair of proxies in front of the app.

    `name` is the column in the table. `client_address` is where the load connects, and
    `tunnel_address` where the far proxy listens (None: nothing is in the path).
    """

    name: str
    alpn: str | None = None
    """What a peer offers in its handshake, if the far proxy insists on it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.client_address: Address = free_address()
        self.tunnel_address: Address | None = free_address()
        self._near: Child | None = None
        self._far: Child | None = None

    @abc.abstractmethod
    def near_command(self) -> Sequence[str]:
        """The command line of the near proxy; may write its configuration file."""

    @abc.abstractmethod
    def far_command(self) -> Sequence[str]:
        """The command line of the far proxy; may write its configuration file."""

    def start_near(self) -> Child:
        self._near = self._child("near", self.near_command())
        return self._near

    def start_far(self) -> Child:
        self._far = self._child("far", self.far_command())
        return self._far

    def stop(self) -> None:
        """End what was started; harmless if nothing was."""
        for child in (self._near, self._far):
            if child is not None:
                child.stop()

    def pids(self) -> list[int]:
        """The processes whose CPU time and memory count; raises ChildFailed if one has ended."""
        living = [child for child in (self._near, self._far) if child is not None]
        for child in living:
            child.check_alive()
        return [child.pid for child in living]

    def path(self, name: str) -> Path:
        """A file of this pair: a configuration or a log."""
        return self.site.folder / f"{self.name}-{name}"

    def _child(self, side: str, command: Sequence[str]) -> Child:
        return Child(
            f"{self.name} ({side})",
            command,
            cpus=self.site.cpus.proxies,
            log=self.path(f"{side}.log"),
            env=dict(os.environ),
        )


class NoProxy(Proxy):
    """The load reaches the app itself: what the ends cost, and the most they can do."""

    name = "none"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.client_address, self.tunnel_address = site.app, None

    def near_command(self) -> Sequence[str]:
        raise NotImplementedError("there is no near proxy")

    def far_command(self) -> Sequence[str]:
        raise NotImplementedError("there is no far proxy")
