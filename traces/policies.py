"""The LinkPolicies in force, asked of the registry: for the page, and kept for the report.

The store itself may read nothing of the API server. It asks over mutual TLS, as `podlink-traces`, which
alone may; a registry that is away costs the page its list and the history a moment, and no span.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from certs.client.rpc import NoCertificate, RenewingChannel
from certs.client.source import SvidSource
from kit.clock import unix_ns
from policy.linkpolicy import LinkPolicy, PolicyInvalid, closed, parse_spec
from policy.replay import Labels
from policy.rules import ALLOW_MESHED, MESH_DEFAULTS
from proto import registry_pb2 as pb
from proto.registry_pb2_grpc import ReviewStub
from traces.page.replay import Cluster
from traces.policy_history import Version, note
from traces.writer import StoreFailed, Writer

EVERY_S: Final = 30.0
"""Between two looks: a policy that came and went in between leaves no trace in the history."""
_DEADLINE_S: Final = 5.0
_OPTIONS: Final = (("grpc.max_receive_message_length", 32 << 20),)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InForce:
    """One LinkPolicy as it stands."""

    version: Version
    policy: LinkPolicy

    @property
    def name(self) -> str:
        return self.policy.policy.name

    @property
    def text(self) -> str:
        """The object as YAML, as one would apply it."""
        return as_yaml(self.version.namespace, self.version.name, self.version.spec)


def as_yaml(namespace: str, name: str, spec: str) -> str:
    import yaml

    return yaml.safe_dump(
        {
            "apiVersion": "podlink.dev/v1alpha1",
            "kind": "LinkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": json.loads(spec) if spec else {},
        },
        sort_keys=False,
        default_flow_style=None,
    )


@dataclass(frozen=True, slots=True)
class Known:
    """What the registry said."""

    policies: tuple[InForce, ...]
    labels: Labels
    mesh_default: str

    @property
    def cluster(self) -> Cluster:
        return Cluster(tuple(one.policy for one in self.policies), self.labels, self.mesh_default)


def read(answer: pb.PoliciesResponse) -> Known:
    """The registry's answer. Of an account with more sets of labels than were told nothing is known:
    what a selector means there is left to the reader. Pure."""
    return Known(
        tuple(_in_force(one) for one in answer.policies),
        {
            (one.namespace, one.service_account): [dict(pod.labels) for pod in one.pods]
            for one in answer.accounts
            if not one.more
        },
        answer.mesh_default if answer.mesh_default in MESH_DEFAULTS else ALLOW_MESHED,
    )


def _in_force(said: pb.PolicyObject) -> InForce:
    version = Version(
        said.namespace, said.name, said.uid, said.generation, said.spec, said.state or "Current"
    )
    raw: Mapping[str, Any] | None = None
    try:
        raw = json.loads(said.spec) if said.spec else None
        policy = parse_spec(said.namespace, said.name, raw)
    except (PolicyInvalid, ValueError):
        policy = closed(said.namespace, said.name, raw)
    return InForce(version, policy)


class PolicyWatch:
    """`run` looks every half minute and has the writer keep what changed."""

    def __init__(
        self,
        source: SvidSource,
        address: str,
        writer: Writer,
        *,
        clock_ns: Callable[[], int] = unix_ns,
        every_s: float = EVERY_S,
    ) -> None:
        self._channel = RenewingChannel(source, address, options=_OPTIONS)
        self._source, self._writer, self._clock_ns = source, writer, clock_ns
        self._every_s = every_s
        self._failing = False

    async def run(self) -> None:
        await self._source.wait_ready()
        while True:
            known = await self.ask(with_labels=False)
            if known is not None:
                versions = [one.version for one in known.policies]
                look = partial(note, versions=versions, now_ns=self._clock_ns())
                try:
                    await self._writer.do(look)
                except StoreFailed as e:
                    _log.warning("policies not kept", extra={"error": str(e)})
            await asyncio.sleep(self._every_s)

    async def ask(self, *, with_labels: bool = True) -> Known | None:
        """What is in force now; None if the registry cannot be asked."""
        try:
            stub = ReviewStub(self._channel.get())
            answer = await stub.Policies(
                pb.PoliciesRequest(with_labels=with_labels), timeout=_DEADLINE_S
            )
        except (grpc.aio.AioRpcError, NoCertificate) as e:
            if not self._failing:
                code = e.code().name if isinstance(e, grpc.aio.AioRpcError) else e.reason
                _log.warning("the registry does not say which policies there are: %s", code)
            self._failing = True
            return None
        self._failing = False
        return read(answer)

    async def close(self) -> None:
        await self._channel.close()
