"""One process that carries links, or several behind one CA client and one registry stream.

- `in_process`: the usual case. The carrier runs in the process of everything else, at no more cost.
- `processes`: N processes on the same ports (SO_REUSEPORT). The parent holds certificates, registry,
  metrics, admin socket and exporter, tells each worker what it needs, and starts one again that died.
- `wire`: how the two talk. `worker`: the child, `python -m sidecar.workers.worker <fd>`.
"""

import asyncio
from typing import Protocol

from certs.client.source import Svid
from certs.trust.bans import Bans
from kit.exposition import Family
from proto import registry_pb2 as pb
from sidecar.dataplane.sources import Sources
from sidecar.directory import Found


class Carriers(Protocol):
    """What carries the links, however many processes that are."""

    async def start(self) -> None:
        """Accept from now on. Raises OSError."""

    def svid_came(self, svid: Svid) -> None: ...

    def bans_came(self, bans: Bans) -> None: ...

    def settings_came(self, settings: pb.PodSettings) -> None:
        """Raises NotUnderstood, with nothing changed."""

    def found_came(self, key: str, value: Found | None) -> None:
        """The registry's word about `key` has changed; None: it is forgotten."""

    @property
    def usable(self) -> bool:
        """Whether a link could be made now, as far as certificates and processes go."""

    async def families(self) -> list[Family]:
        """Metrics of all of them together."""

    @property
    def sources(self) -> Sources:
        """Which callers an app can be shown, for connections of this process (the app's probes)."""

    async def page(self, name: str) -> dict[str, object]:
        """A page of the admin socket, of all of them together (`sidecar.admin.views.PAGES`)."""

    async def drain(self, hurry: asyncio.Event) -> None:
        """Let running links end; `hurry` or the grace period ends the wait."""

    async def close(self) -> None: ...
