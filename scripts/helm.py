"""Helm as a shared library, and the chart rendered by it: `python -m scripts.helm [values.yaml]`.

The library comes with the PyPI package helm-sdkpy, unpacked into `.helm` (`make .helm/.ready`); it
has no `template`, so `render` installs the chart into an API server of ours that knows every kind and
keeps nothing, and reads what Helm sent. That is Helm's own rendering, schema check and lookup.
"""

import base64
import ctypes
import gzip
import json
import platform
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "podlink"
_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
LIBRARY = ROOT / ".helm/helm_sdkpy/_lib" / f"linux-{_ARCH}" / "libhelm_sdkpy.so"
_TIMEOUT_S = 60
_RELEASE = re.compile(rb"H4sI[A-Za-z0-9+/]+=*")
Object = dict[str, Any]

# group/version -> (plural, kind, namespaced)
_KINDS: dict[str, list[tuple[str, str, bool]]] = {
    "v1": [
        ("namespaces", "Namespace", False), ("serviceaccounts", "ServiceAccount", True),
        ("services", "Service", True), ("secrets", "Secret", True), ("pods", "Pod", True),
        ("configmaps", "ConfigMap", True), ("persistentvolumeclaims", "PersistentVolumeClaim", True),
    ],
    "apps/v1": [("deployments", "Deployment", True), ("daemonsets", "DaemonSet", True)],
    "batch/v1": [("jobs", "Job", True)],
    "policy/v1": [("poddisruptionbudgets", "PodDisruptionBudget", True)],
    "autoscaling/v2": [("horizontalpodautoscalers", "HorizontalPodAutoscaler", True)],
    "networking.k8s.io/v1": [("networkpolicies", "NetworkPolicy", True)],
    "scheduling.k8s.io/v1": [("priorityclasses", "PriorityClass", False)],
    "rbac.authorization.k8s.io/v1": [
        ("clusterroles", "ClusterRole", False), ("clusterrolebindings", "ClusterRoleBinding", False),
        ("roles", "Role", True), ("rolebindings", "RoleBinding", True),
    ],
    "apiextensions.k8s.io/v1": [
        ("customresourcedefinitions", "CustomResourceDefinition", False)
    ],
    "admissionregistration.k8s.io/v1": [
        ("mutatingwebhookconfigurations", "MutatingWebhookConfiguration", False),
        ("validatingadmissionpolicies", "ValidatingAdmissionPolicy", False),
        ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", False),
    ],
    "monitoring.coreos.com/v1": [
        ("podmonitors", "PodMonitor", True), ("servicemonitors", "ServiceMonitor", True),
        ("prometheusrules", "PrometheusRule", True),
    ],
}  # fmt: skip


class HelmMissing(Exception):
    """The library is not there. One line with what to do."""


class HelmRefused(Exception):
    """Helm refused the chart or the values; its own words."""


@dataclass
class ApiServer:
    """What Helm talks to: knows the kinds above, holds nothing, and remembers the release."""

    minor: int = 34
    release: Object = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Object | None]:
        """Status and body; None: what was sent."""
        path = path.partition("?")[0].rstrip("/")
        parts = path.split("/")
        if path == "/version":
            major = {"major": "1", "minor": str(self.minor), "gitVersion": f"v1.{self.minor}.0"}
            return 200, {**major, "platform": "linux/amd64"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": self._groups()}
        version = "/".join(parts[2:]) if parts[1] == "apis" else "v1"
        if path in ("/api/v1", f"/apis/{version}") and version in _KINDS:
            return 200, self._resources(version)
        if method == "GET" and path.endswith("/secrets"):
            return 200, {"kind": "SecretList", "apiVersion": "v1", "items": []}
        if method == "GET":
            return 404, {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        # Helm speaks protobuf for its own Secret: in it, the release as base64 of gzip.
        if (found := _RELEASE.search(body)) is not None:
            self.release = json.loads(gzip.decompress(base64.b64decode(found[0])))
        return (201 if method == "POST" else 200), None

    def _groups(self) -> list[Object]:
        found = []
        for version in _KINDS:
            group, slash, number = version.partition("/")
            if slash:
                one = {"groupVersion": version, "version": number}
                found.append({"name": group, "versions": [one], "preferredVersion": one})
        return found

    def _resources(self, version: str) -> Object:
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        items = [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": inside,
             "verbs": verbs}
            for plural, kind, inside in _KINDS[version]
            if self.minor >= 30 or not kind.startswith("ValidatingAdmission")
        ]  # fmt: skip
        return {"kind": "APIResourceList", "groupVersion": version, "resources": items}


@contextmanager
def _serving(api: ApiServer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # a connection each, so that none is left open

        def _any(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            sent = self.rfile.read(size)
            status, found = api.answer(self.command, self.path, sent)
            body = sent if found is None else json.dumps(found).encode()
            kind = self.headers.get("Content-Type") if found is None else None
            self.send_response(status)
            self.send_header("Content-Type", kind or "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815 - the base calls them so

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Helm:
    """The library's calls that are used here. One lock: its last error is one for all threads."""

    def __init__(self) -> None:
        if not LIBRARY.exists():
            raise HelmMissing(f"{LIBRARY.relative_to(ROOT)} is missing: make .helm/.ready")
        self._lib = ctypes.CDLL(str(LIBRARY))
        self._lib.helm_sdkpy_last_error.restype = ctypes.c_char_p
        self._lock = threading.Lock()

    def lint(self, chart: Path) -> Object:
        """Raises HelmRefused."""
        handle = self._configured("default", _NO_CLUSTER)
        try:
            return self._call("lint", handle, str(chart).encode())
        finally:
            self._lib.helm_sdkpy_config_destroy(handle)

    def install(
        self, name: str, chart: Path, values: Mapping[str, Any], namespace: str, kubeconfig: str,
        **options: Any,
    ) -> Object:  # fmt: skip
        """Install without waiting; by client-side apply if `options` say nothing. Raises HelmRefused."""
        return self._release("install", name, chart, values, namespace, kubeconfig, options)

    def upgrade(
        self, name: str, chart: Path, values: Mapping[str, Any], namespace: str, kubeconfig: str,
        **options: Any,
    ) -> Object:  # fmt: skip
        """Upgrade without waiting, applied as at the install. Raises HelmRefused."""
        options = {"server_side_apply": "auto", "max_history": 10, **options}
        return self._release("upgrade", name, chart, values, namespace, kubeconfig, options)

    def uninstall(self, name: str, namespace: str, kubeconfig: str) -> Object:
        """Raises HelmRefused."""
        handle = self._configured(namespace, kubeconfig)
        try:
            return self._call("uninstall", handle, name.encode(), 0, _TIMEOUT_S)
        finally:
            self._lib.helm_sdkpy_config_destroy(handle)

    def test(self, name: str, namespace: str, kubeconfig: str) -> Object:
        """Run the chart's tests to their end. Raises HelmRefused where one fails."""
        handle = self._configured(namespace, kubeconfig)
        try:
            return self._call("test", handle, name.encode())
        finally:
            self._lib.helm_sdkpy_config_destroy(handle)

    def _release(
        self, what: str, name: str, chart: Path, values: Mapping[str, Any], namespace: str,
        kubeconfig: str, options: Mapping[str, Any],
    ) -> Object:  # fmt: skip
        asked = {
            "create_namespace": False, "wait": False, "timeout_seconds": _TIMEOUT_S,
            "server_side_apply": "false", "disable_openapi_validation": True, **options,
        }  # fmt: skip
        handle = self._configured(namespace, kubeconfig)
        try:
            words = (name, str(chart), json.dumps(dict(values)), "", json.dumps(asked))
            return self._call(what, handle, *(word.encode() for word in words))
        finally:
            self._lib.helm_sdkpy_config_destroy(handle)

    def _configured(self, namespace: str, kubeconfig: str) -> ctypes.c_ulonglong:
        handle = ctypes.c_ulonglong()
        code = self._lib.helm_sdkpy_config_create(
            namespace.encode(), kubeconfig.encode(), None, b"{}", ctypes.byref(handle)
        )
        if code:
            raise HelmRefused(self._error())
        return handle

    def _call(self, name: str, *words: Any) -> Object:
        out = ctypes.c_char_p()
        with self._lock:
            if getattr(self._lib, f"helm_sdkpy_{name}")(*words, ctypes.byref(out)):
                raise HelmRefused(self._error())
        found: Object = json.loads(out.value or b"{}")
        return found

    def _error(self) -> str:
        return (self._lib.helm_sdkpy_last_error() or b"").decode()


@dataclass(frozen=True)
class Rendered:
    objects: list[Object]
    hooks: list[Object]
    notes: str


def render(
    helm: Helm,
    values: Mapping[str, Any] | None = None,
    *,
    namespace: str = "podlink-system",
    minor: int = 34,
    chart: Path = CHART,
) -> Rendered:
    """The objects of the chart as Helm makes them for a cluster of version 1.`minor`.

    Raises HelmRefused.
    """
    api = ApiServer(minor)
    with _serving(api) as url:
        helm.install("podlink", chart, values or {}, namespace, _kubeconfig(url))
    hooks = [one for hook in api.release.get("hooks") or () for one in _load(hook["manifest"])]
    return Rendered(_load(api.release["manifest"]), hooks, api.release["info"].get("notes", ""))


def _kubeconfig(url: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "x", "cluster": {"server": url}}],
            "users": [{"name": "x", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        }
    )  # fmt: skip


_NO_CLUSTER = _kubeconfig("http://127.0.0.1:9")


def _load(text: str) -> list[Object]:
    return [one for one in yaml.safe_load_all(text) if one]


def main(argv: list[str]) -> None:
    if argv == ["serve"]:  # one question a line, for the tests: Go's threads stay out of them
        helm = Helm()
        for line in sys.stdin:
            print(json.dumps(_answered(helm, json.loads(line))), flush=True)
        return
    values = yaml.safe_load(Path(argv[0]).read_text()) if argv else {}
    made = render(Helm(), values)
    print(yaml.safe_dump_all([*made.objects, *made.hooks], sort_keys=False))


def _answered(helm: Helm, asked: Object) -> Object:
    try:
        what = asked.pop("what")
        if what == "render":
            return {"rendered": asdict(render(helm, **asked))}
        if what == "lint":
            return {"said": helm.lint(CHART)}
        if what in ("install", "upgrade"):
            chart = Path(asked.pop("chart", CHART))
            return {"said": getattr(helm, what)("podlink", chart, **asked)}
        if what == "uninstall":
            return {"said": helm.uninstall("podlink", **asked)}
        return {"refused": f"what is {what!r}?"}
    except HelmRefused as e:
        return {"refused": str(e)}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HelmMissing as e:
        sys.exit(str(e))
