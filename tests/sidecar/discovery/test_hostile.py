"""What a tenant may write, from the API server to the data plane's values: it is left out alone, and
every other key is answered as if it were not there.
"""

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.checked import Unreadable
from proto import registry_pb2 as pb
from registry.answers import MAX_ENTRY_BYTES, Answers, message
from registry.facts import read_namespace, read_pod, read_policy, read_service, read_slice
from registry.keys import Key
from registry.model import Model
from registry.watch import PODS, SERVICES, SLICES
from sidecar.directory import Found, Own, Service, Workload
from sidecar.discovery.client import RegistryClient
from sidecar.discovery.translate import policy_set
from tests.hostile import PORTS, spoilt
from tests.patience import PATIENCE_S
from tests.registry.objects import endpoint, namespace_object, pod, service, slice_of
from tests.registry.test_service import WEB_POD, registry
from tests.sidecar.discovery.test_client import ready, running

OWN = Own("shop", "web", "shop-web", frozenset({"127.0.0.1"}))
API = pod("api", "10.0.0.7", account="api")


async def eventually(holds: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.attack_row(50)
@pytest.mark.parametrize("app_protocol", ["", "http"])
@pytest.mark.parametrize("port", PORTS, ids=repr)
async def test_a_port_that_is_none_costs_nobody_but_itself(
    port: Any, app_protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An EndpointSlice may say port 70000 or -1: the API server does not look."""
    said = {"name": "", "port": 80, "appProtocol": app_protocol}
    ports = ({"name": "", "port": port, "protocol": "TCP"},)
    caplog.set_level(logging.WARNING)
    async with registry(WEB_POD, API) as it, running(it.channel) as sidecar:
        await ready(sidecar)
        it.api.put(SERVICES, service("bait", "10.96.0.50", namespace="evil", ports=(said,)))
        it.api.put(SLICES, slice_of("bait", endpoint("203.0.113.7"), namespace="evil", ports=ports))
        # The sidecar's own pod behind such a Service: the port would go into its settings.
        it.api.put(SERVICES, service("self", "10.96.0.51", ports=(said,)))
        it.api.put(SLICES, slice_of("self", endpoint("127.0.0.1", WEB_POD), ports=ports))
        it.api.put(SERVICES, service("fresh", "10.96.0.9"))
        it.api.put(SLICES, slice_of("fresh", endpoint("10.0.0.7", API)))
        await eventually(lambda: it.server.model.service("fresh.shop"))
        bait = await sidecar.ask("10.96.0.50")
        assert isinstance(bait, Service)
        assert [dict(one.ports) for one in bait.endpoints] == [{}]
        assert isinstance(await sidecar.ask("10.96.0.51"), Service)
        fresh = await sidecar.ask("10.96.0.9")
        assert isinstance(fresh, Service)
        assert [(one.ip, dict(one.ports)) for one in fresh.endpoints] == [
            ("10.0.0.7", {5432: 15432})
        ]
        assert sidecar.client.connected
        assert len(sidecar.channels) == 1, "no stream was ended"
        if port is not None:
            kinds = dict(it.server.refused.fields)
            assert sum(kinds.values()) == 2
            assert {kind for kind, _ in kinds} == {"endpointslices"}
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.mark.attack_row(50)
async def test_a_policy_that_is_nested_beyond_reading_lets_nobody_in_and_costs_nobody_else() -> (
    None
):
    path = "/apis/podlink.dev/v1alpha1/linkpolicies"
    metadata = {
        "namespace": "shop",
        "name": "deep",
        "uid": "1",
        "generation": 1,
        "resourceVersion": "9",
    }
    spec = '{"selector": {}, "x": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}"
    deep = f'{{"type": "ADDED", "object": {{"metadata": {json.dumps(metadata)}, "spec": {spec}}}}}'
    async with registry(WEB_POD, API) as it, running(it.channel) as sidecar:
        await ready(sidecar)
        await eventually(lambda: it.api._watches[path])
        for watch in it.api._watches[path]:
            watch.put_nowait(deep.encode() + b"\n")
        await eventually(lambda: it.server.model.policies.standing("shop", "deep"))
        standing = it.server.model.policies.standing("shop", "deep")
        assert standing is not None
        assert standing.state == "Closed"
        it.api.put(PODS, pod("late", "10.0.0.8", account="api"))
        await eventually(lambda: it.server.model.at_ip("10.0.0.8"))
        assert isinstance(await sidecar.ask("10.0.0.8"), Workload)
        assert dict(it.server.refused.fields) == {("linkpolicies", "nested_too_deep"): 1}


# --- every kind, at random ------------------------------------------------------------------

EVIL_POD = pod("p", "203.0.113.5", namespace="evil", node="n9", node_ip="192.0.2.9", env={
    "PODLINK_MODE": "redirect", "PODLINK_SKIP_INBOUND_PORTS": "80",
    "PODLINK_SKIP_OUTBOUND_PORTS": "25", "PODLINK_HTTP_PORTS": "8080",
}, labels={"app": "p", "topology.kubernetes.io/zone": "z9"},
    annotations={"plaintext": "allow", "plaintext_ports": "80", "external": "allow"})  # fmt: skip
EVIL_SERVICE = service(
    "s", "10.96.1.1", namespace="evil", annotations={"config.podlink.dev/balance": "round-robin"},
    ports=({"name": "", "port": 80, "appProtocol": "http", "protocol": "TCP"},),
    sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
    trafficDistribution="PreferClose", internalTrafficPolicy="Local",
)  # fmt: skip
EVIL_SLICE = slice_of(
    "s", endpoint("203.0.113.5", EVIL_POD, nodeName="n9", zone="z9", hostname="h",
                  hints={"forZones": [{"name": "z9"}]}),
    endpoint("203.0.113.6"), namespace="evil", ports=({"name": "", "port": 8080},),
)  # fmt: skip
EVIL_NAMESPACE = namespace_object("evil", plaintext="allow", external="deny")
EVIL_POLICY = {
    "metadata": {"namespace": "evil", "name": "l", "uid": "u", "generation": 3,
                 "resourceVersion": "7"},
    "spec": {"selector": {"matchLabels": {"app": "p"},
                          "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
             "mode": "Audit",
             "allow": [{"from": [{"namespace": "shop", "serviceAccount": "web"}], "ports": [80]}],
             "deny": [{"fromCIDRs": ["10.0.0.0/8"]}]},
    "status": {"conditions": [{"type": "Accepted", "status": "True"}],
               "inForce": {"generation": 2, "spec": {}}},
}  # fmt: skip
KINDS: dict[str, tuple[Any, Any]] = {
    "pod": (read_pod, EVIL_POD),
    "service": (read_service, EVIL_SERVICE),
    "slice": (read_slice, EVIL_SLICE),
    "namespace": (read_namespace, EVIL_NAMESPACE),
    "policy": (read_policy, EVIL_POLICY),
}
HONEST = ("10.0.0.7", "127.0.0.1", "10.96.0.9", "fresh.shop", "198.51.100.1", "api.fresh.shop")
EVIL = ("203.0.113.5", "203.0.113.6", "10.96.1.1", "s.evil", "h.s.evil")


class World:
    """A registry's model, and a sidecar's client that is told what it answers."""

    def __init__(self) -> None:
        self.model = Model()
        self.answers = Answers(self.model, "allow-meshed")
        self.settings: list[pb.PodSettings] = []
        self.client = RegistryClient(OWN, "cluster.local", None, self._take)  # type: ignore[arg-type]
        for one in (WEB_POD, API):
            self.put("pod", None, one)
        self.put("service", None, service("fresh", "10.96.0.9"))
        self.put("slice", None, slice_of("fresh", endpoint("10.0.0.7", API)))

    def _take(self, said: pb.PodSettings) -> None:
        policy_set(said)
        self.settings.append(said)

    def put(self, kind: str, old: Any, raw: Any) -> Any:
        """As an informer does; returns what is now known of the object."""
        new = None
        if raw is not None:
            with suppress(Unreadable):
                new = KINDS[kind][0](raw)
        if old != new:
            change = getattr(self.model, f"change_{kind}")
            topics = change("evil/x", old, new) if kind == "slice" else change(old, new)
            self.answers.forget(topics)
        return new

    def tell(self, keys: tuple[str, ...], uid: str = "shop-web") -> dict[str, Found | None]:
        entries = [self.answers.entry(Key.parse(key)) for key in keys]
        assert all(len(one.framed) <= MAX_ENTRY_BYTES for one in entries)
        said = self.answers.settings(uid)
        encoded = None if said is None else said.SerializeToString()
        self.client._apply(pb.DiscoverResponse.FromString(message(1, entries, encoded)))
        return {key: self.client.known(key) for key in keys}


@pytest.mark.attack_row(50)
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(sorted(KINDS)).flatmap(
            lambda kind: st.tuples(st.just(kind), spoilt(KINDS[kind][1]))
        ),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_a_tenant_writes_every_other_key_is_answered_as_before(
    written: list[tuple[str, Any]],
) -> None:
    async def scenario() -> None:
        world = World()
        before = world.tell(HONEST)
        kept: dict[str, Any] = {}
        for kind, raw in [(kind, honest) for kind, (_, honest) in KINDS.items()] + written:
            kept[kind] = world.put(kind, kept.get(kind), raw)
            assert world.tell(HONEST) == before
            world.tell(EVIL, "evil-p")
            assert "bug" not in world.client.refused
        assert world.settings[0] == world.settings[-1] or world.settings
        for kind, value in kept.items():
            if value is not None:
                world.put(kind, value, None)
        assert world.tell(HONEST) == before
        assert world.answers.settings("shop-web") == world.settings[0]

    asyncio.run(scenario())
