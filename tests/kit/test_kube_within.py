"""A podlink that serves one namespace asks of that one what it would ask of all."""

import pytest

from kit.kube import within


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/api/v1/pods", "/api/v1/namespaces/shop/pods"),
        ("/api/v1/services", "/api/v1/namespaces/shop/services"),
        ("/apis/discovery.k8s.io/v1/endpointslices",
         "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"),
        ("/apis/podlink.dev/v1alpha1/linkpolicies",
         "/apis/podlink.dev/v1alpha1/namespaces/shop/linkpolicies"),
        ("/api/v1/namespaces/podlink-system/pods/ca", "/api/v1/namespaces/podlink-system/pods/ca"),
        ("/api/v1/nodes", "/api/v1/nodes"),
    ],
)  # fmt: skip
def test_lists_of_all_namespaces_become_lists_of_one(path: str, wanted: str) -> None:
    assert within("shop", "GET", path, {"limit": "500"}) == (wanted, {"limit": "500"})
    assert within("", "GET", path, {}) == (path, {})
    assert within("shop", "POST", path, {}) == (path, {})


def test_of_the_namespaces_only_that_one_is_watched() -> None:
    path, query = within("shop", "GET", "/api/v1/namespaces", {"watch": "true"})
    assert path == "/api/v1/namespaces"
    assert query == {"watch": "true", "fieldSelector": "metadata.name=shop"}
