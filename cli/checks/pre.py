"""Before an installation: what must be true of a cluster. Ids: docs/checks.md."""

from collections.abc import Sequence

from cli.checks.model import Outcome, fail, ok, unreadable, warn
from cli.installed import find_installation
from kit.kube import Kube, KubeError

_OLDEST, _NATIVE, _GUARD = (1, 27), (1, 29), (1, 30)
_NEEDED = (
    ("", "namespaces"), ("", "serviceaccounts"), ("", "services"), ("", "secrets"),
    ("apps", "deployments"), ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "roles"), ("rbac.authorization.k8s.io", "rolebindings"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
)  # fmt: skip


async def version(kube: Kube) -> Sequence[Outcome]:
    try:
        said = await kube.get("/version")
        found = (int(said["major"]), int(str(said["minor"]).rstrip("+")))
    except KubeError as e:
        return [unreadable("kubernetes-version", "the version", e)]
    except (KeyError, ValueError, TypeError):
        return [warn("kubernetes-version", "the version cannot be read", "is this Kubernetes?")]
    text = f"Kubernetes {found[0]}.{found[1]}"
    if found < _OLDEST:
        return [fail("kubernetes-version", text, "podlink needs 1.27 or newer: upgrade")]
    outcomes = [ok("kubernetes-version", text)]
    if found < _NATIVE:
        outcomes.append(
            warn(
                "native-sidecars",
                "not known before 1.29: the proxy is an ordinary container, and Jobs are refused",
                "upgrade to 1.29 for Jobs and for init containers that need the mesh",
            )
        )
    else:
        outcomes.append(ok("native-sidecars", "known"))
    return outcomes


async def admission_policies(kube: Kube) -> Sequence[Outcome]:
    path = "/apis/admissionregistration.k8s.io/v1"
    try:
        listed = (await kube.get(path))["resources"]
    except KubeError as e:
        return [unreadable("admission-policies", "the kinds of the API", e)]
    if any(one["name"] == "validatingadmissionpolicies" for one in listed):
        return [ok("admission-policies", "ValidatingAdmissionPolicy is known")]
    return [
        warn(
            "admission-policies",
            "no ValidatingAdmissionPolicy (before 1.30): the webhook alone guards",
            "install with --no-guard; pods of the mesh then wait while the injector is away",
        )
    ]


async def rights(kube: Kube) -> Sequence[Outcome]:
    missing = []
    for group, resource in _NEEDED:
        wish = {"verb": "create", "group": group, "resource": resource}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": wish},
        }
        try:
            review = await kube.create(
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body
            )
        except KubeError as e:
            return [unreadable("may-install", "your own rights", e)]
        if not review["status"]["allowed"]:
            missing.append(resource)
    if missing:
        todo = "ask somebody who may, or install for one namespace (--only-namespace)"
        return [fail("may-install", f"you may not create {', '.join(missing)}", todo)]
    return [ok("may-install", "you may create all that podlink is made of")]


async def other(kube: Kube) -> Sequence[Outcome]:
    found = await find_installation(kube)
    if found is None:
        return [ok("not-installed", "no other podlink is here")]
    todo = "podlink upgrade, or podlink uninstall first"
    return [warn("not-installed", f"podlink is in {found.namespace} already", todo)]


async def meshes(kube: Kube) -> Sequence[Outcome]:
    try:
        found = await kube.get(
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
        )
    except KubeError as e:
        return [unreadable("other-meshes", "the webhooks", e)]
    known = ("istio-sidecar-injector", "linkerd-proxy-injector", "consul-", "kuma-admission")
    names = [o["metadata"]["name"] for o in found["items"]]
    others = [name for name in names if name.startswith(known)]
    if others:
        todo = "enrol no namespace in both: two redirects in one pod break its connections"
        return [warn("other-meshes", f"another mesh injects pods: {', '.join(others)}", todo)]
    return [ok("other-meshes", "no other mesh injects pods")]


CHECKS = (version, admission_policies, rights, other, meshes)
