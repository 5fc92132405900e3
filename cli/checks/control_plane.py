"""After an installation: the control plane, admission, roots, and pods that are not in the mesh."""

import asyncio
import base64
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509

from cli.checks.model import Outcome, fail, ok, unreadable, warn
from cli.installed import Installation
from cli.objects import PROGRAMS
from cli.upgrade import may_follow
from kit import contract
from kit.clock import utcnow
from kit.kube import Kube, KubeError, Object

_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
_ENROLLED = f"{contract.INJECT_LABEL}=enabled"
_PATIENCE = 10
_ROOT_WARN, _ROOT_FAIL = timedelta(days=60), timedelta(days=7)


def programs(found: Installation) -> list[Outcome]:
    """Each Deployment has as many ready pods as it should."""
    outcomes = []
    for program in PROGRAMS:
        id_ = f"{program}-ready"
        one = found.deployments.get(program)
        if one is None:
            if program == "podlink-traces":
                outcomes.append(Outcome(id_, "skip", "not installed: spans go elsewhere"))
            else:
                todo = "apply the manifests again: podlink install"
                outcomes.append(fail(id_, f"no Deployment in {found.namespace}", todo))
            continue
        wanted = one["spec"].get("replicas", 1)
        ready = (one.get("status") or {}).get("readyReplicas") or 0
        said = f"{ready} of {wanted} ready"
        where = f"kubectl -n {found.namespace} describe pods -l app.kubernetes.io/name={program}"
        if not wanted:
            many = 1 if program == "podlink-traces" else 2
            todo = f"kubectl -n {found.namespace} scale deployment {program} --replicas={many}"
            outcomes.append(fail(id_, "scaled to 0: nobody does its work", todo))
        elif ready == 0:
            outcomes.append(fail(id_, said, where))
        elif ready < wanted:
            outcomes.append(warn(id_, said, where))
        else:
            outcomes.append(ok(id_, said))
    return outcomes


def record_lasts(found: Installation) -> list[Outcome]:
    """What the trace store keeps outlives its pod. Nothing to say where there is no store."""
    one = found.deployments.get("podlink-traces")
    if one is None:
        return []
    volumes = one["spec"].get("template", {}).get("spec", {}).get("volumes") or ()
    if any("emptyDir" in volume and volume["name"] == "data" for volume in volumes):
        said = "the record of links is in an emptyDir: it is lost with the store's pod"
        return [
            warn("record-lasts", said, "traces.persistence.enabled: true of the chart keeps it")
        ]
    return [ok("record-lasts", "the record of links outlives the store's pod")]


def versions(found: Installation) -> list[Outcome]:
    """The control plane is of this CLI's version, or one minor version off."""
    said = {p: found.version(p) for p in found.deployments if found.version(p)}
    off = sorted(p for p, one in said.items() if not may_follow(one, contract.VERSION))
    if off:
        todo = "use the podlink of that version, or upgrade step by step"
        return [fail("control-plane-version", f"too far from {contract.VERSION}: {off}", todo)]
    if len(set(said.values())) > 1:
        todo = "podlink upgrade | kubectl apply -f -, and wait"
        return [warn("control-plane-version", f"programs differ: {said}", todo)]
    return [ok("control-plane-version", ", ".join(sorted(set(said.values()))) or "not labelled")]


async def crd(kube: Kube) -> Sequence[Outcome]:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/linkpolicies.podlink.dev"
    try:
        served = [v["name"] for v in (await kube.get(path))["spec"]["versions"] if v["served"]]
    except KubeError as e:
        if e.status == 404:
            todo = "podlink install | kubectl apply -f -"
            return [fail("linkpolicy-crd", "LinkPolicy is not known to the cluster", todo)]
        return [unreadable("linkpolicy-crd", "the kind LinkPolicy", e)]
    return [ok("linkpolicy-crd", f"LinkPolicy {', '.join(served)}")]


async def webhook(kube: Kube, found: Installation) -> Sequence[Outcome]:
    """It is there, knows the roots, and really injects."""
    try:
        hook = await kube.get(f"{_ADMISSION}/mutatingwebhookconfigurations/podlink-injector")
    except KubeError as e:
        if e.status == 404:
            todo = "podlink install | kubectl apply -f -"
            return [fail("webhook-present", "pods are not injected: no webhook", todo)]
        return [unreadable("webhook-present", "the webhook", e)]
    outcomes = [ok("webhook-present", f"{len(hook['webhooks'])} webhooks")]
    roots = await _roots(kube, found.namespace)
    bundles = {base64.b64decode(w["clientConfig"].get("caBundle") or "") for w in hook["webhooks"]}
    if bundles == {roots} and roots:
        outcomes.append(ok("webhook-ca-bundle", "the webhook's caBundle holds the mesh's roots"))
    else:
        todo = f"the injector writes it: kubectl -n {found.namespace} logs deploy/podlink-injector"
        outcomes.append(
            fail("webhook-ca-bundle", "the caBundle is not that of the mesh's roots", todo)
        )
    outcomes.append(await _injects(kube, found))
    return outcomes


async def _injects(kube: Kube, found: Installation) -> Outcome:
    where = found.injector_env.get("PODLINK_ONLY_NAMESPACE") or "default"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "podlink-check", "labels": {contract.INJECT_LABEL: "enabled"}},
        "spec": {"containers": [{"name": "app", "image": "none", "command": ["true"]}]},
    }
    todo = f"kubectl -n {found.namespace} logs deploy/podlink-injector says why"
    try:
        made = await kube.create(f"/api/v1/namespaces/{where}/pods?dryRun=All", pod)
    except KubeError as e:
        if e.status == 403 and "podlink" not in str(e):
            return warn("webhook-injects", "you may not create pods to try it", "ask for the right")
        return fail("webhook-injects", f"a pod of the mesh is refused: {e}", todo)
    containers = [*(made["spec"].get("initContainers") or ()), *made["spec"]["containers"]]
    if any(c["name"] == contract.PROXY_CONTAINER for c in containers):
        return ok("webhook-injects", "a pod that asks for it gets its sidecar (dry run)")
    return fail("webhook-injects", "a pod that asks for it gets no sidecar", todo)


async def guard(kube: Kube) -> Sequence[Outcome]:
    for kind in ("validatingadmissionpolicies", "validatingadmissionpolicybindings"):
        try:
            await kube.get(f"{_ADMISSION}/{kind}/podlink-guard")
        except KubeError as e:
            if e.status == 404:
                said = "no podlink-guard: only the webhook keeps pods without sidecar out"
                return [warn("guard-in-force", said, "install without --no-guard (1.30)")]
            return [unreadable("guard-in-force", "the guard", e)]
    return [ok("guard-in-force", "pods that would get round the mesh are refused")]


async def leaves_without_sidecar(kube: Kube) -> Sequence[Outcome]:
    """The namespaces where a pod gets a leaf without a sidecar that captures and records."""
    chosen = f"{contract.ANY_POD_LABEL}={contract.ANY_POD_ALLOWED}"
    try:
        found = (await kube.get("/api/v1/namespaces", labelSelector=chosen))["items"]
    except KubeError as e:
        return [unreadable("leaves-without-sidecar", "the namespaces", e)]
    names = sorted(one["metadata"]["name"] for one in found)
    if names:
        said = f"the CA signs for pods without a sidecar in {', '.join(names)}"
        todo = f"unless that is meant: kubectl label namespace NAME {contract.ANY_POD_LABEL}-"
        return [warn("leaves-without-sidecar", said, todo)]
    return [ok("leaves-without-sidecar", "only pods that carry the proxy get a leaf")]


async def bundles(kube: Kube, found: Installation) -> Sequence[Outcome]:
    """Every enrolled namespace has the roots of now; and how long the roots last."""
    roots = await _roots(kube, found.namespace)
    logs = f"kubectl -n {found.namespace} logs deploy/podlink-ca"
    if not roots:
        said = f"no ConfigMap {contract.BUNDLE_CONFIG_MAP} in {found.namespace}"
        return [fail("root-lasts", said, f"the CA writes it: {logs}")]
    outcomes = [root_lasts(x509.load_pem_x509_certificates(roots), utcnow())]
    try:
        enrolled = (await kube.get("/api/v1/namespaces", labelSelector=_ENROLLED))["items"]
    except KubeError as e:
        return [*outcomes, unreadable("bundle-everywhere", "the namespaces", e)]
    names = [one["metadata"]["name"] for one in enrolled]
    lacking = [name for name in names if await _roots(kube, name) != roots]
    if lacking:
        said = f"not the roots of now: {', '.join(lacking[:5])}"
        outcomes.append(fail("bundle-everywhere", said, f"new pods wait there: {logs}"))
    else:
        outcomes.append(ok("bundle-everywhere", f"{len(names)} enrolled namespaces have the roots"))
    return outcomes


def root_lasts(roots: Sequence[x509.Certificate], now: datetime) -> Outcome:
    """The last root to end decides. Pure."""
    left = max(root.not_valid_after_utc for root in roots) - now
    said = f"{len(roots)} roots, the last ends in {left.days} days"
    todo = "podlink rotate root --start"
    if left < _ROOT_FAIL:
        return fail("root-lasts", said, todo)
    return warn("root-lasts", said, todo) if left < _ROOT_WARN else ok("root-lasts", said)


async def uninjected(kube: Kube) -> Sequence[Outcome]:
    try:
        enrolled = (await kube.get("/api/v1/namespaces", labelSelector=_ENROLLED))["items"]
        without = []
        for name in (one["metadata"]["name"] for one in enrolled):
            pods = (await kube.get(f"/api/v1/namespaces/{name}/pods"))["items"]
            without += [f"{name}/{p['metadata']['name']}" for p in pods if _should_be_meshed(p)]
    except KubeError as e:
        return [unreadable("pods-injected", "the pods of enrolled namespaces", e)]
    if without:
        said = f"{len(without)} pods have no sidecar: {', '.join(without[:5])}"
        return [fail("pods-injected", said, "restart what made them: kubectl rollout restart ...")]
    return [
        ok("pods-injected", "every pod of an enrolled namespace that can have a sidecar has it")
    ]


def _should_be_meshed(pod: Object) -> bool:
    spec, labels = pod["spec"], pod["metadata"].get("labels") or {}
    if spec.get("hostNetwork") or labels.get(contract.INJECT_LABEL) == "disabled":
        return False
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return False
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    return all(one["name"] != contract.PROXY_CONTAINER for one in containers)


async def policies(kube: Kube) -> Sequence[Outcome]:
    try:
        items = (await _patiently(kube, "/apis/podlink.dev/v1alpha1/linkpolicies"))["items"]
    except KubeError as e:
        if e.status == 404:
            return []
        return [unreadable("policies-accepted", "the LinkPolicies", e)]
    bad = []
    for one in items:
        conditions = {c["type"]: c for c in (one.get("status") or {}).get("conditions") or ()}
        if (conditions.get("Accepted") or {}).get("status") == "False":
            bad.append(f"{one['metadata']['namespace']}/{one['metadata']['name']}")
    if bad:
        todo = "kubectl describe linkpolicy says why; the last good form is in force"
        return [fail("policies-accepted", f"not understood: {', '.join(bad[:5])}", todo)]
    return [ok("policies-accepted", f"{len(items)} LinkPolicies, all understood")]


async def _patiently(kube: Kube, path: str) -> Object:
    """GET, again where the API server asks for patience: it does for some seconds after a kind was
    made ("storage is (re)initializing", 429). Raises KubeError."""
    for _ in range(_PATIENCE):
        try:
            return await kube.get(path)
        except KubeError as e:
            if e.status != 429:
                raise
            await asyncio.sleep(min(e.retry_after_s or 1.0, 2.0))
    return await kube.get(path)


async def _roots(kube: Kube, namespace: str) -> bytes:
    path = f"/api/v1/namespaces/{namespace}/configmaps/{contract.BUNDLE_CONFIG_MAP}"
    try:
        return str((await kube.get(path))["data"][contract.BUNDLE_KEY]).encode()
    except (KubeError, KeyError, TypeError):
        return b""
