"""Objects on the real API server: made strictly, found again, and taken down to the last."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.kubernetes.real_api import Answer, Object, RealApi

_WAIT_S = 60.0


def until(question: Callable[[], Any], what: str) -> Any:
    """What `question` says once it says something. Fails the test after a minute."""
    deadline = time.monotonic() + _WAIT_S
    while not (found := question()):
        assert time.monotonic() < deadline, f"not within {_WAIT_S:g} s: {what}"
        time.sleep(0.1)
    return found


class Objects:
    """What the API server holds. Knows each kind's path from the server's own discovery."""

    def __init__(self, api: RealApi) -> None:
        self.api = api

    @functools.cache  # noqa: B019 - one a session
    def _kinds(self, version: str) -> dict[str, tuple[str, bool]]:
        base = "/api/v1" if version == "v1" else f"/apis/{version}"
        found = self.api.call("GET", base).body.get("resources") or ()
        return {one["kind"]: (f"{base}|{one['name']}", one["namespaced"])
                for one in found if "/" not in one["name"]}  # fmt: skip

    def forget(self) -> None:
        """Discover anew: a CRD has come."""
        Objects._kinds.cache_clear()

    def collection(self, one: Object) -> str:
        """Where objects of its kind, and its namespace, are created. KeyError: no such kind."""
        where, namespaced = self._kinds(one["apiVersion"])[one["kind"]]
        base, plural = where.split("|")
        if not namespaced:
            return f"{base}/{plural}"
        return f"{base}/namespaces/{one['metadata'].get('namespace', 'default')}/{plural}"

    def create(self, one: Object, token: str = "", **query: str) -> Answer:
        """Unknown and doubled fields are errors."""
        query = {"fieldValidation": "Strict", **query}
        return self.api.call("POST", self.collection(one), one, token=token, **query)

    def get(self, one: Object) -> Answer:
        return self.api.call("GET", f"{self.collection(one)}/{one['metadata']['name']}")

    def delete(self, one: Object) -> Answer:
        path = f"{self.collection(one)}/{one['metadata']['name']}"
        return self.api.call("DELETE", path, gracePeriodSeconds="0", propagationPolicy="Background")

    def namespace(self, name: str, **labels: str) -> None:
        """A namespace with its default ServiceAccount, as pods need it."""
        metadata = {"name": name, "labels": labels}
        self.api.need("POST", "/api/v1/namespaces", {"metadata": metadata})
        account = f"/api/v1/namespaces/{name}/serviceaccounts"
        if not self.api.has_controllers:
            self.api.need("POST", account, {"metadata": {"name": "default"}})
        until(lambda: self.api.call("GET", f"{account}/default").status == 200, "an account")

    def drop_namespace(self, name: str) -> None:
        """With everything in it. Where no controller does so, this does what that would do."""
        path = f"/api/v1/namespaces/{name}"
        if self.api.call("DELETE", path).status == 404:
            return
        if not self.api.has_controllers:
            for where in self._deletable(name):
                self.api.call("DELETE", where, gracePeriodSeconds="0")
            body = self.api.call("GET", path).body
            body["spec"] = {"finalizers": []}
            self.api.call("PUT", f"{path}/finalize", body)
        until(lambda: self.api.call("GET", path).status == 404, f"namespace {name} is gone")

    def _deletable(self, namespace: str) -> Iterator[str]:
        groups = self.api.need("GET", "/apis")["groups"]
        for base in (
            "/api/v1",
            *(f"/apis/{g['preferredVersion']['groupVersion']}" for g in groups),
        ):
            for one in self.api.call("GET", base).body.get("resources") or ():
                if one["namespaced"] and "deletecollection" in one["verbs"]:
                    yield f"{base}/namespaces/{namespace}/{one['name']}"

    def drop_crd(self) -> None:
        """What another module left of the LinkPolicy kind."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/linkpolicies.podlink.dev"
        self.api.call("DELETE", path)
        until(lambda: self.api.call("GET", path).status == 404, "no LinkPolicy kind is left")
        self.forget()

    def everything(self) -> set[str]:
        """Kind, namespace and name of every object that can be listed, but for what comes by itself."""
        found = set()
        groups = self.api.need("GET", "/apis")["groups"]
        for base in (
            "/api/v1",
            *(f"/apis/{g['preferredVersion']['groupVersion']}" for g in groups),
        ):
            for kind in self.api.call("GET", base).body.get("resources") or ():
                if "list" not in kind["verbs"] or kind["name"] in ("events", "leases"):
                    continue
                listed = self.api.call("GET", f"{base}/{kind['name']}").body.get("items") or ()
                for one in listed:
                    metadata = one["metadata"]
                    if metadata["name"] in ("default", "kube-root-ca.crt"):
                        continue  # every namespace gets them
                    found.add(f"{kind['name']} {metadata.get('namespace', '')}/{metadata['name']}")
        return found
