"""A model fed with raw objects, as the informers would feed it."""

from typing import Any

from registry.endpoints import Dropped
from registry.facts import PodFacts, read_namespace, read_node, read_pod, read_service, read_slice
from registry.model import Model, ServiceView, Topics

Raw = dict[str, Any]


class Cluster:
    def __init__(self) -> None:
        self.drops: dict[str, list[Dropped]] = {}
        self.model = Model(on_drop=self.drops.__setitem__)
        self._known: dict[tuple[str, str], Any] = {}

    def pods(self, *raws: Raw) -> Topics:
        return set().union(*(self._put("pod", raw, read_pod) for raw in raws))

    def services(self, *raws: Raw) -> Topics:
        return set().union(*(self._put("service", raw, read_service) for raw in raws))

    def slices(self, *raws: Raw) -> Topics:
        return set().union(*(self._put("slice", raw, read_slice) for raw in raws))

    def namespaces(self, *raws: Raw) -> Topics:
        return set().union(*(self._put("namespace", raw, read_namespace) for raw in raws))

    def nodes(self, *raws: Raw) -> Topics:
        return set().union(*(self._put("node", raw, read_node) for raw in raws))

    def remove(self, kind: str, raw: Raw) -> Topics:
        return self._change(kind, _key(raw), None)

    def at(self, ip: str) -> PodFacts:
        found = self.model.at_ip(ip)
        assert isinstance(found, PodFacts)
        return found

    def service(self, name: str) -> ServiceView:
        found = self.model.service(name)
        assert found is not None
        return found

    def reasons(self, name: str) -> dict[str, str]:
        self.service(name)
        return {one.claimed_ip: one.reason for one in self.drops.get(name, [])}

    def _put(self, kind: str, raw: Raw, read: Any) -> Topics:
        return self._change(kind, _key(raw), read(raw))

    def _change(self, kind: str, key: str, new: Any) -> Topics:
        old = self._known.pop((kind, key), None)
        if new is not None:
            self._known[kind, key] = new
        model = self.model
        match kind:
            case "pod":
                return model.change_pod(old, new)
            case "service":
                return model.change_service(old, new)
            case "slice":
                return model.change_slice(key, old, new)
            case "node":
                return model.change_node(old, new)
            case _:
                return model.change_namespace(old, new)


def _key(raw: Raw) -> str:
    metadata = raw["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"
