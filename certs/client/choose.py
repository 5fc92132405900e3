"""Where a program's certificates come from: our CA, or a SPIFFE agent of the node.

PODLINK_SVID_SOURCE    ca (default) or workload-api
PODLINK_WORKLOAD_API   the agent's socket, as SPIFFE_ENDPOINT_SOCKET has it
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from certs.client.ca import CaClient
from certs.client.source import SvidSource
from certs.trust.identity import WorkloadIdentity
from kit.settings import ConfigInvalid, Settings

_KINDS = frozenset({"ca", "workload-api"})
_SOCKET = "unix:///run/spire/sockets/agent.sock"


@dataclass(frozen=True, slots=True)
class SourceConfig:
    workload_api: str = ""
    """The agent's socket; empty: our own CA."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Raises ConfigInvalid naming the setting."""
        if settings.choice("PODLINK_SVID_SOURCE", "ca", _KINDS) == "ca":
            return cls()
        # Only who asks for an agent pays for the code that speaks to one.
        from certs.client.workload_api import EndpointMalformed, read_endpoint

        name = "PODLINK_WORKLOAD_API"
        socket = settings.optional(name) or settings.text("SPIFFE_ENDPOINT_SOCKET", _SOCKET)
        try:
            read_endpoint(socket)
        except EndpointMalformed as e:
            raise ConfigInvalid(f"{name} {e}") from e
        return cls(socket)

    @property
    def leaves_name_pods(self) -> bool:
        """Whether a leaf carries its pod's addresses, as ours do and an agent's do not."""
        return not self.workload_api

    def open(
        self,
        wanted: WorkloadIdentity,
        *,
        ca_address: str,
        token_path: Path,
        bundle_path: Path,
    ) -> SvidSource:
        """The source; `wanted` is who we are to be, which our CA knows by the token."""
        if self.workload_api:
            from certs.client.workload_api import WorkloadApiSource

            return WorkloadApiSource(self.workload_api, wanted)
        return CaClient(ca_address, token_path, bundle_path, wanted.trust_domain)
