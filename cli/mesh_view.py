"""The mesh as the registry would see it, from the API server, with the operator's rights.

The registry's own model and readers, filled with the objects of the few namespaces that a question is
about: what a command explains with it is decided by the code that decides.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from cli.cluster import explained
from cli.exec import ExecFailed, exec_json
from kit.addresses import canonical_ip
from kit.contract import DEFAULT_TRUST_DOMAIN
from kit.kube import Kube, KubeError, Object
from kit.ports import PortSet
from policy.linkpolicy import GROUP, PLURAL, VERSION
from policy.rules import Policy, PolicySet, Rule, Source
from proto import registry_pb2 as pb
from registry.answers import Answers
from registry.facts import (
    PodFacts,
    read_namespace,
    read_node,
    read_pod,
    read_policy,
    read_service,
    read_slice,
)
from registry.keys import Key
from registry.model import Model
from registry.policies import Standing
from sidecar.directory import Found
from sidecar.discovery.translate import found, policy_set

TAKES = "`list` on pods, services, endpointslices, namespaces and linkpolicies"
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)
_PAGE = "500"


class MeshView:
    """What is known of some namespaces. `trust_domain` is that of the identities."""

    def __init__(self, trust_domain: str = DEFAULT_TRUST_DOMAIN) -> None:
        self.trust_domain = trust_domain
        self.model = Model()
        self.pods: dict[str, PodFacts] = {}
        """By `namespace/name`."""
        self.policies: list[tuple[str, str]] = []
        """Namespace and name of each LinkPolicy, in order."""
        self._seen: set[str] = set()
        self._nodes: set[str] = set()

    async def load(self, kube: Kube, *namespaces: str) -> None:
        """Read these namespaces whole. Raises ClusterUnavailable."""
        for name in namespaces:
            if name in self._seen:
                continue
            self._seen.add(name)
            try:
                raw = await kube.get(f"/api/v1/namespaces/{name}")
                self.model.change_namespace(None, read_namespace(raw))
            except KubeError as e:
                if e.status != 404:
                    raise explained(e, "read the cluster", TAKES) from e
            await self._load(kube, f"/api/v1/namespaces/{name}/pods", self._pod)
            await self._load(kube, f"/api/v1/namespaces/{name}/services", self._service)
            slices = f"/apis/discovery.k8s.io/v1/namespaces/{name}/endpointslices"
            await self._load(kube, slices, self._slice)
            policies = f"/apis/{GROUP}/{VERSION}/namespaces/{name}/{PLURAL}"
            await self._load(kube, policies, self._policy, passes_over=(404,))

    async def load_address(self, kube: Kube, ip: str) -> None:
        """Read whose address it is: a pod anywhere, or a Service. Raises ClusterUnavailable."""
        await self._load(kube, "/api/v1/pods", self._pod, fieldSelector=f"status.podIP={ip}")
        await self._load(kube, "/api/v1/services", self._service)
        # Who may not read nodes is told the same as long as no port of a node is asked for.
        await self._load(kube, "/api/v1/nodes", self._node, passes_over=(403,))
        for node in self.model.nodes_at(ip):  # for the host ports of its pods
            await self._load(kube, "/api/v1/pods", self._pod, fieldSelector=f"spec.nodeName={node}")
        found = self.model.at_ip(ip)
        where = getattr(found, "namespace", "") or getattr(
            getattr(found, "service", None), "namespace", ""
        )
        if where:
            await self.load(kube, where)

    async def _load(
        self,
        kube: Kube,
        path: str,
        take: Any,
        *,
        passes_over: tuple[int, ...] = (),
        **query: str,
    ) -> None:
        asked = {"limit": _PAGE, **query}
        while True:
            try:
                page = await kube.get(path, **asked)
            except KubeError as e:
                if e.status in passes_over:
                    return
                raise explained(e, "read the cluster", TAKES) from e
            for raw in page.get("items") or ():
                try:
                    take(raw)
                except _UNREADABLE:
                    continue  # the registry would leave it out as well
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return
            asked["continue"] = more

    def _pod(self, raw: Object) -> None:
        new = read_pod(raw)
        path = f"{new.namespace}/{new.name}"
        if path not in self.pods:
            self.pods[path] = new
            self.model.change_pod(None, new)

    def _service(self, raw: Object) -> None:
        new = read_service(raw)
        if self.model.service(f"{new.name}.{new.namespace}") is None:
            self.model.change_service(None, new)

    def _node(self, raw: Object) -> None:
        new = read_node(raw)
        if new.name not in self._nodes:
            self._nodes.add(new.name)
            self.model.change_node(None, new)

    def _slice(self, raw: Object) -> None:
        metadata = raw["metadata"]
        key = f"{metadata['namespace']}/{metadata['name']}"
        self.model.change_slice(key, None, read_slice(raw))

    def _policy(self, raw: Object) -> None:
        new = read_policy(raw)
        self.model.change_policy(None, new)
        self.policies.append((new.namespace, new.name))

    # --- answers ----------------------------------------------------------------------------

    def find(self, key: str) -> Found:
        """What the registry would answer for an address or a Service's name ("api.shop")."""
        entry = Answers(self.model, "").entry(Key.parse(key))
        response = pb.DiscoverResponse.FromString(entry.framed)
        return found(response.entries[0], self.trust_domain)

    def in_force(self, pod: PodFacts, mesh_default: str) -> PolicySet:
        """What the registry would tell the pod's sidecar."""
        settings = Answers(self.model, mesh_default).settings(pod.uid)
        assert settings is not None
        return policy_set(settings)

    def standings(self, pod: PodFacts) -> dict[str, Standing]:
        """Every LinkPolicy that selects the pod, by `namespace/name`."""
        found: dict[str, Standing] = {}
        for namespace, name in self.policies:
            standing = self.model.policies.standing(namespace, name)
            if standing is not None and self.model.policies.selects(standing.policy, pod):
                found[f"{namespace}/{name}"] = standing
        return found


async def ask_sidecar(kube: Kube, pod: PodFacts, path: str) -> tuple[Any, str]:
    """An admin page of the pod's sidecar, or None and why there is no answer."""
    if not pod.meshed:
        return None, "it has no sidecar"
    try:
        return await exec_json(kube, pod.namespace, pod.name, path), ""
    except ExecFailed as e:
        return None, str(e)


def read_in_force(page: Mapping[str, Any]) -> PolicySet:
    """The policies in force, from the admin page `/policy`. Raises ValueError on another form."""
    from ipaddress import ip_network

    def rules(raw: Iterable[Mapping[str, Any]]) -> tuple[Rule, ...]:
        return tuple(
            Rule(
                one["name"],
                tuple(Source(s["namespace"], s["service_account"]) for s in one["sources"]),
                tuple(ip_network(network) for network in one["networks"]),
                frozenset(int(port) for port in one["ports"]),
            )
            for one in raw
        )

    try:
        ports = page.get("plaintext_ports") or ""
        return PolicySet(
            str(page["mesh_default"]),
            bool(page["allow_plaintext"]),
            tuple(
                Policy(p["name"], rules(p["allow"]), rules(p["deny"]), bool(p["audit"]))
                for p in page["policies"]
            ),
            PortSet.parse([p.strip() for p in str(ports).split(",") if p.strip()]),
        )
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"the admin page /policy has another form: {e!r}") from e


def as_ip(text: str) -> str:
    """The canonical address, or "" if it is none."""
    try:
        return canonical_ip(text)
    except ValueError:
        return ""
