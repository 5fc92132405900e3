"""podlink's own programs against the real API server: each as its chart's Deployment says, with tokens
of its own ServiceAccount from the real TokenRequest, bound to a pod of its own.

There is no node, so this plays the kubelet: it runs the container's command with the container's
environment, puts the tokens and the trust bundle where the pod would find them (in a mount namespace of
its own), and reports the pod's addresses. What a program may ask of the API server is RBAC's matter.
"""

import contextlib
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.objects import Choices, build, token_secret
from scripts.helm import ROOT
from tests.kubernetes.objects import Objects, until
from tests.kubernetes.real_api import Object, free_ports

SYSTEM = "podlink-system"
_SERVICES = [f"podlink-{name}.{SYSTEM}.svc" for name in ("ca", "registry", "traces")]
PROGRAMS = ("ca", "registry", "injector", "traces")
_TAIL = 3000
# /var/run leads to /run; both are this process's alone.
_ENTER = (
    "set -e; mount -t tmpfs none /run; cd /run; mkdir -p secrets/kubernetes.io; "
    'ln -s "$1/account" secrets/kubernetes.io/serviceaccount; ln -s "$1/podlink" secrets/podlink; '
    'mount --bind "$1/hosts" /etc/hosts; cd "$2"; shift 2; exec "$@"'
)


def own_address() -> str | None:
    """An address of this machine that is not loopback's: an EndpointSlice may hold no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        found = str(sock.getsockname()[0])
    return None if found.startswith("127.") else found


def may_unshare() -> bool:
    """Whether a mount namespace can be had here."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_unshare(), "true"], capture_output=True, timeout=10).returncode == 0


def _unshare() -> list[str]:
    return ["unshare", "--mount", *(() if os.getuid() == 0 else ("--user", "--map-root-user"))]


def _loopback() -> str:
    return (
        f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
    )


@dataclass
class Program:
    """One that runs. `token` is what it shows to the API server, `podlink_token` what to the CA."""

    name: str
    pod: Object
    token: str
    podlink_token: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-_TAIL:]


@dataclass
class ControlPlane:
    """podlink installed, and its programs where they listen. `ports` by what listens there."""

    objects: Objects
    folder: Path
    choices: Choices
    address: str = "127.0.0.1"
    loopback: str = field(default_factory=_loopback)
    """Where the Services' names lead to: an address of its own, so that the ports can be the chart's."""
    ports: dict[str, int] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)

    def install(self) -> None:
        """Every object as `podlink install` prints it, taken strictly."""
        made = build(self.choices)
        made.insert(2, token_secret(SYSTEM))
        for one in made:
            if one["kind"] == "Namespace":
                self.objects.namespace(SYSTEM, **one["metadata"]["labels"])
                continue
            answer = self.objects.create(one)
            assert (answer.status, answer.warnings) == (201, ()), f"{one['kind']}: {answer}"
        names = ("ca-health", "registry-health", "injector")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))

    def uninstall(self) -> None:
        for one in reversed(build(self.choices)):
            if one["kind"] != "Namespace":
                self.objects.delete(one)
        self.objects.drop_namespace(SYSTEM)

    @contextlib.contextmanager
    def running(self, *names: str) -> Iterator[None]:
        """These programs, in this order, each ready before the next; stopped at the end."""
        with contextlib.ExitStack() as stack:
            for name in names:
                self.start(name, stack)
            yield

    def start(self, name: str, stack: contextlib.ExitStack, **env: str) -> Program:
        """Run one until `stack` ends. Fails the test with the end of its log."""
        pod = self.make_pod(name)
        folder = self.folder / f"{name}-{pod['metadata']['uid'][:8]}"
        account = f"podlink-{name}"
        tokens = {
            "account/token": self.token(SYSTEM, account, pod),
            "podlink/token/token": self.token(SYSTEM, account, pod, "podlink-ca"),
            "account/namespace": SYSTEM,
            "account/ca.crt": self.objects.api.certificate.read_text(),
            "hosts": f"127.0.0.1 localhost\n{self.loopback} {' '.join(_SERVICES)}\n",
        }
        if name != "ca":  # the kubelet would wait for the ConfigMap just so
            tokens["podlink/bundle/root.pem"] = self.bundle()
        if name == "traces":
            tokens["podlink/traces/token"] = "t" * 32
        for path, text in tokens.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        (container,) = pod["spec"]["containers"]
        said = {**self._env(container, pod), **self._where(folder), **env}
        if f"{name}-health" in self.ports:
            said["PODLINK_HEALTH_PORT"] = str(self.ports[f"{name}-health"])
        command = [sys.executable, *container["command"][1:]]
        argv = [*_unshare(), "sh", "-c", _ENTER, "sh", str(folder), str(ROOT), *command]
        log = folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                argv, cwd=ROOT, env=said, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        stack.callback(_end, process)
        stack.callback(self.objects.delete, pod)
        program = Program(
            name, pod, tokens["account/token"], tokens["podlink/token/token"], process, log
        )
        self.programs[name] = program

        def ready() -> bool:
            assert process.poll() is None, f"{name} ended: {program.tail()}"
            return self.is_ready(name)

        try:
            until(ready, f"{name} is ready")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{program.tail()}") from e
        return program

    def is_ready(self, name: str) -> bool:
        """By the same question as the chart's readinessProbe."""
        url = {
            "ca": f"http://127.0.0.1:{self.ports['ca-health']}/readyz",
            "registry": f"http://127.0.0.1:{self.ports['registry-health']}/readyz",
            "injector": f"https://127.0.0.1:{self.ports['injector']}/readyz",
            "traces": f"http://{self.loopback}:24114/healthz",
        }[name]
        return get_status(url) == 200

    def make_pod(self, name: str) -> Object:
        """A pod as a controller makes it of the Deployment, with the addresses a kubelet reports."""
        api = self.objects.api
        path = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/podlink-{name}"
        template = api.need("GET", path)["spec"]["template"]
        metadata = {**template["metadata"], "generateName": f"podlink-{name}-", "namespace": SYSTEM}
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        answer = self.objects.create(made)
        assert answer.status == 201, answer
        self.report_addresses(answer.body)
        return answer.body

    def report_addresses(self, pod: Object) -> None:
        status = {
            "phase": "Running", "podIP": self.address, "podIPs": [{"ip": self.address}],
            "hostIP": "127.0.0.1", "hostIPs": [{"ip": "127.0.0.1"}],
        }  # fmt: skip
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        kind = "application/merge-patch+json"
        self.objects.api.need("PATCH", path, {"status": status}, kind=kind)

    def token(self, namespace: str, account: str, pod: Object | None, audience: str = "") -> str:
        """From the real TokenRequest; without an audience, for the API server."""
        spec: dict[str, Any] = {"expirationSeconds": 3600}
        if audience:
            spec["audiences"] = [audience]
        if pod is not None:
            metadata = pod["metadata"]
            spec["boundObjectRef"] = {
                "apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"],
            }  # fmt: skip
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(self.objects.api.need("POST", path, {"spec": spec})["status"]["token"])

    def bundle(self, namespace: str = SYSTEM) -> str:
        path = f"/api/v1/namespaces/{namespace}/configmaps/podlink-bundle"
        api = self.objects.api
        found = until(lambda: api.call("GET", path).body.get("data"), f"roots in {namespace}")
        return str(found["root.pem"])

    def _env(self, container: Object, pod: Object) -> dict[str, str]:
        fields = {"metadata.name": pod["metadata"]["name"]}
        said = {"PATH": os.environ["PATH"]}
        for one in container["env"]:
            source = (one.get("valueFrom") or {}).get("fieldRef")
            said[one["name"]] = fields[source["fieldPath"]] if source else one.get("value", "")
        return said

    def _where(self, folder: Path) -> Mapping[str, str]:
        host, _, port = self.objects.api.url.removeprefix("https://").partition(":")
        return {
            "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port,
            "PODLINK_CA_LISTEN": f"{self.loopback}:24110",
            "PODLINK_REGISTRY_LISTEN": f"{self.loopback}:24111",
            "PODLINK_INJECTOR_LISTEN": f"[::]:{self.ports['injector']}",
            "PODLINK_TRACES_HOST": self.loopback,
            "PODLINK_TRACES_DB": str(folder / "traces.db"),
        }  # fmt: skip


def get_status(url: str) -> int:
    """Of one GET, with no certificate checked: readiness is no secret. 0: no answer."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        with e:
            return e.code
    except OSError:
        return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
