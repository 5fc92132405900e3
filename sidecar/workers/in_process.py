"""The usual case: links are carried in this very process."""

import asyncio
from typing import Protocol

from kit.exposition import Family
from sidecar.admin import views
from sidecar.carrier import Carrier
from sidecar.config import SidecarConfig
from sidecar.dataplane.sources import Sources
from sidecar.directory import Directory, Found
from sidecar.metrics.collect import of_carrier
from sidecar.report import Report


class KnownDirectory(Directory, views.Known, Protocol):
    """The registry's client."""


class InProcess:
    """A `sidecar.workers.Carriers` of one process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: SidecarConfig,
        directory: "KnownDirectory",
        report: Report,
    ) -> None:
        self.carrier = carrier = Carrier(loop, config, directory, report)
        self._directory = directory
        self.svid_came = carrier.svid_came
        self.bans_came = carrier.bans_came
        self.settings_came = carrier.settings_came

    async def start(self) -> None:
        self.carrier.listen()

    def found_came(self, key: str, value: Found | None) -> None:
        """The carrier asks the registry's client itself; here it only hears who has gone."""
        if value is not None:
            self.carrier.found_comes(key, value)

    @property
    def usable(self) -> bool:
        return self.carrier.plane.usable_trust() is not None

    @property
    def sources(self) -> Sources:
        return self.carrier.plane.sources

    async def families(self) -> list[Family]:
        return of_carrier(self.carrier)

    async def page(self, name: str) -> views.Json:
        return views.PAGES[name](self.carrier, self._directory)

    async def drain(self, hurry: asyncio.Event) -> None:
        await self.carrier.drain(hurry)

    async def close(self) -> None:
        self.carrier.close()
