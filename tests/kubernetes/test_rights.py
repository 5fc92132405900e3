"""What each program may do, as a real API server with RBAC has it: it works, and may nothing more."""

import base64
from typing import Any

import pytest

from tests.kubernetes.objects import until
from tests.kubernetes.programs import SYSTEM, ControlPlane, Program

Right = tuple[str, str, str]
"""A verb, a resource with its group, and the name that it is tied to ("": any)."""

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
READ, WATCH = ("get", "list", "watch"), ("list", "watch")


def rights(resource: str, verbs: tuple[str, ...], name: str = "") -> set[Right]:
    return {(verb, resource, name) for verb in verbs}


EVERYWHERE: dict[str, set[Right]] = {
    "ca": rights("namespaces", READ) | rights("pods", READ)
    | rights("tokenreviews.authentication.k8s.io", ("create",))
    | rights("configmaps", ("get", "update", "patch"), "podlink-bundle")
    | rights("configmaps", ("create",)),
    "registry": rights("namespaces", READ) | rights("pods", WATCH) | rights("services", WATCH)
    | rights("endpointslices.discovery.k8s.io", WATCH)
    | rights("linkpolicies.podlink.dev", WATCH)
    | rights("linkpolicies/status.podlink.dev", ("patch",)),
    "injector": rights("namespaces", READ) | rights(
        "mutatingwebhookconfigurations.admissionregistration.k8s.io", ("get", "patch"),
        "podlink-injector",
    ),
    "traces": set(),
}  # fmt: skip
AT_HOME: dict[str, set[Right]] = {
    "ca": rights("secrets", (*READ, "update", "patch"), "podlink-ca")
    | rights("secrets", ("create",))
    | rights("configmaps", (*READ, "create", "update", "patch", "delete"))
    | rights("events", ("create",)),
}


def may(plane: ControlPlane, token: str, namespace: str) -> set[Right]:
    """Every right on a resource that the API server says `token` has in `namespace`."""
    body = {"spec": {"namespace": namespace}}
    status = plane.objects.api.need("POST", REVIEWS, body, token=token)["status"]
    assert not status.get("incomplete"), status
    return {
        (verb, f"{resource}.{group}" if group else resource, name)
        for rule in status["resourceRules"]
        for verb in rule["verbs"]
        for group in rule.get("apiGroups") or ("",)
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or ("",)
    }


def anybodys(plane: ControlPlane, namespace: str) -> set[Right]:
    """What every ServiceAccount may, such as to ask for its own rights."""
    return may(plane, plane.token(SYSTEM, "default", None), namespace)


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("namespace", [SYSTEM, "shop", "elsewhere", "kube-system"])
def test_a_program_has_these_rights_and_no_other(
    plane: ControlPlane, name: str, namespace: str
) -> None:
    wanted = EVERYWHERE[name] | (AT_HOME.get(name, set()) if namespace == SYSTEM else set())
    token = plane.programs[name].token
    assert may(plane, token, namespace) - anybodys(plane, namespace) == wanted


WEBHOOKS = "/apis/admissionregistration.k8s.io/v1"
FORBIDDEN = [
    ("GET", "/api/v1/namespaces/kube-system/secrets"),
    ("GET", "/api/v1/namespaces/shop/secrets/other"),
    ("GET", "/api/v1/secrets"),
    ("GET", f"/api/v1/namespaces/{SYSTEM}/secrets/podlink-traces-token"),
    ("POST", "/api/v1/namespaces/shop/pods"),
    ("POST", "/api/v1/namespaces/shop/pods/web/exec"),
    ("DELETE", "/api/v1/namespaces/shop"),
    ("PATCH", "/api/v1/namespaces/shop"),
    ("POST", "/api/v1/namespaces/shop/serviceaccounts/default/token"),
    ("PATCH", f"{WEBHOOKS}/mutatingwebhookconfigurations/another"),
    ("DELETE", f"{WEBHOOKS}/mutatingwebhookconfigurations/podlink-injector"),
    ("PATCH", f"{WEBHOOKS}/validatingadmissionpolicies/podlink-guard"),
    ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
    ("PATCH", "/apis/podlink.dev/v1alpha1/namespaces/shop/linkpolicies/db"),
    ("DELETE", "/apis/podlink.dev/v1alpha1/namespaces/shop/linkpolicies/db"),
    ("GET", "/api/v1/nodes"),
]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_an_intruder_in_a_program_would_want_is_refused(
    plane: ControlPlane, name: str
) -> None:
    token = plane.programs[name].token
    for method, path in FORBIDDEN:
        body: Any = None if method in ("GET", "DELETE") else {"metadata": {"labels": {}}}
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        query = {} if method == "GET" else {"dryRun": "All"}
        answer = plane.objects.api.call(method, path, body, token=token, kind=kind, **query)
        assert answer.status == 403, f"{name} {method} {path}: {answer}"


def test_the_programs_do_their_work_with_what_they_may(plane: ControlPlane) -> None:
    api = plane.objects.api
    roots = plane.bundle()
    assert plane.bundle("shop") == roots, "the CA keeps the roots in enrolled namespaces"
    assert "podlink-bundle" not in names(plane, "/api/v1/namespaces/elsewhere/configmaps")
    assert "podlink-ca" in names(plane, f"/api/v1/namespaces/{SYSTEM}/secrets")
    webhook = f"{WEBHOOKS}/mutatingwebhookconfigurations/podlink-injector"
    wanted = base64.b64encode(roots.encode()).decode()
    bundles = {w["clientConfig"]["caBundle"] for w in api.need("GET", webhook)["webhooks"]}
    assert bundles == {wanted}
    allow = [{"from": [{"namespace": "shop"}], "ports": [80]}]
    policy = {
        "apiVersion": "podlink.dev/v1alpha1", "kind": "LinkPolicy",
        "metadata": {"name": "db", "namespace": "shop"}, "spec": {"allow": allow},
    }  # fmt: skip
    plane.objects.forget()
    assert plane.objects.create(policy).status == 201

    def accepted() -> bool:
        status = plane.objects.get(policy).body.get("status") or {}
        return any(c["type"] == "Accepted" and c["status"] == "True"
                   for c in status.get("conditions") or ())  # fmt: skip

    until(accepted, "the registry says what became of a policy")
    until(lambda: any(name.startswith("podlink-ca-ledger-") for name in
                      names(plane, f"/api/v1/namespaces/{SYSTEM}/configmaps")),
          "the CA's book of living leaves")  # fmt: skip
    for program in plane.programs.values():
        assert program.process.poll() is None
        assert not said_forbidden(program), program.tail()


def names(plane: ControlPlane, path: str) -> set[str]:
    return {one["metadata"]["name"] for one in plane.objects.api.need("GET", path)["items"]}


def said_forbidden(program: Program) -> bool:
    text = program.log.read_text(errors="replace")
    return "Forbidden" in text or "forbidden" in text
