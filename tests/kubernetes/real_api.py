"""A real kube-apiserver with its etcd, from the folder that KUBEBUILDER_ASSETS names.

The folder is what `setup-envtest use -p path` prints; nothing is downloaded here. All programs listen
on loopback, keep their data in a folder of the test's and end with it. A kube-controller-manager runs
beside them where the folder has one (setup-envtest's has not).
"""

import contextlib
import json
import re
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from ssl import CERT_NONE, create_default_context
from typing import Any
from urllib.parse import urlencode

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes.aio.client import Configuration

from kit.kube import Kube

VARIABLE = "KUBEBUILDER_ASSETS"
PROGRAMS = ("etcd", "kube-apiserver")
CONTROLLERS = "kube-controller-manager"
# What a cluster does by itself and our objects count on. Pods are made, and wait: there is no node.
_LOOPS = (
    "namespace-controller", "serviceaccount-controller", "root-ca-certificate-publisher-controller",
    "garbage-collector-controller", "validatingadmissionpolicy-status-controller",
    "clusterrole-aggregation-controller", "deployment-controller", "replicaset-controller",
    "statefulset-controller", "job-controller",
)  # fmt: skip
_READY_S = 60.0
_TAIL = 2000
_WARNING = re.compile(r'299 \S+ "(?P<text>.*?)(?<!\\)"')
Object = dict[str, Any]


class AssetsUnusable(Exception):
    """One line that names the variable and what is wrong with what it says."""


def find_assets(environment: Mapping[str, str]) -> Path | None:
    """The folder, None if the variable is not set. Raises AssetsUnusable if it is and is wrong: a run
    that was told to use a real API server must not pass by skipping."""
    said = environment.get(VARIABLE, "")
    if not said:
        return None
    folder = Path(said)
    for name in PROGRAMS:
        if not (folder / name).is_file():
            raise AssetsUnusable(f"{VARIABLE}={said}: there is no {name} in it")
    return folder


@dataclass(frozen=True)
class Plan:
    """Where things are. `etcd` and `apiserver` are the command lines."""

    folder: Path
    assets: Path
    etcd_port: int
    etcd_peer_port: int
    api_port: int
    controllers_port: int = 0

    @property
    def etcd(self) -> list[str]:
        client = f"http://127.0.0.1:{self.etcd_port}"
        return [
            str(self.assets / "etcd"),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls=http://127.0.0.1:{self.etcd_peer_port}",
            "--unsafe-no-fsync",
        ]

    @property
    def apiserver(self) -> list[str]:
        key = self.folder / "service-accounts.key"
        return [
            str(self.assets / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            f"--cert-dir={self.folder / 'certs'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.api_port}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--allow-privileged=true",
            # Webhooks go to a Service's endpoints: nothing here would answer on its cluster IP.
            "--enable-aggregator-routing=true",
        ]

    @property
    def controllers(self) -> list[str]:
        return [
            str(self.assets / CONTROLLERS),
            f"--kubeconfig={self.folder / 'kubeconfig'}",
            f"--controllers={','.join(_LOOPS)}",
            f"--root-ca-file={self.certificate}",
            "--authentication-skip-lookup=true",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.controllers_port}",
            "--leader-elect=false",
        ]

    @property
    def certificate(self) -> Path:
        """The API server's own, with its issuer: what a pod would find as its ca.crt."""
        return self.folder / "certs" / "apiserver.crt"


@dataclass(frozen=True)
class Answer:
    """`warnings` are those that kubectl would print."""

    status: int
    body: Object
    warnings: tuple[str, ...]

    @property
    def said(self) -> str:
        return str(self.body.get("message", ""))


@dataclass(frozen=True)
class RealApi:
    url: str
    token: str
    certificate: Path
    has_controllers: bool = False

    def kube(self) -> Kube:
        """A client with every right; close it."""
        configuration = Configuration(host=self.url)
        configuration.verify_ssl = False  # its certificate is its own, made at start, on loopback
        configuration.api_key = {"BearerToken": self.token}
        configuration.api_key_prefix = {"BearerToken": "Bearer"}
        return Kube(configuration)

    def kubeconfig(self) -> str:
        """YAML for whoever may do everything."""
        cluster = {"server": self.url, "certificate-authority": str(self.certificate)}
        return yaml.safe_dump(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "real",
                "clusters": [{"name": "real", "cluster": cluster}],
                "users": [{"name": "real", "user": {"token": self.token}}],
                "contexts": [{"name": "real", "context": {"cluster": "real", "user": "real"}}],
            }
        )  # fmt: skip

    def call(
        self, method: str, path: str, body: Object | list[Object] | None = None, *,
        token: str = "", kind: str = "application/json", **query: str,
    ) -> Answer:  # fmt: skip
        """One request, as whoever `token` is (default: everything allowed); no status raises."""
        request = urllib.request.Request(
            f"{self.url}{path}{'?' if query else ''}{urlencode(query)}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {token or self.token}", "Content-Type": kind},
        )
        context = create_default_context(cafile=str(self.certificate))
        try:
            answer = urllib.request.urlopen(request, timeout=30, context=context)
        except urllib.error.HTTPError as e:
            answer = e
        with answer:
            said = answer.headers.get_all("Warning") or ()
            warnings = tuple(m["text"] for one in said for m in _WARNING.finditer(one))
            return Answer(answer.status, _read(answer.read()), warnings)

    def need(self, method: str, path: str, body: Any = None, **how: Any) -> Object:
        """The same, and the answer's body; anything but a success fails the test."""
        answer = self.call(method, path, body, **how)
        assert answer.status < 300, f"{method} {path}: {answer.status} {answer.said}"
        return answer.body


def _read(raw: bytes) -> Object:
    try:
        found: Object = json.loads(raw)
    except ValueError:
        return {"message": raw.decode(errors="replace")}
    return found


@contextlib.contextmanager
def real_api(assets: Path, folder: Path) -> Iterator[RealApi]:
    """Run both programs until the block ends. Raises AssetsUnusable with the end of a log."""
    plan = Plan(folder, assets, *free_ports(4))
    token = secrets.token_hex(16)
    tokens = folder / "tokens.csv"
    tokens.touch(mode=0o600)
    tokens.write_text(f'{token},admin,admin,"system:masters"\n')
    _write_key(folder / "service-accounts.key")
    with contextlib.ExitStack() as stack:
        for argv in (plan.etcd, plan.apiserver):
            process = stack.enter_context(_running(argv, folder))
        url = f"https://127.0.0.1:{plan.api_port}"
        _wait_ready(url, process, folder / "kube-apiserver.log")
        has_controllers = (assets / CONTROLLERS).is_file()
        api = RealApi(url, token, plan.certificate, has_controllers)
        if has_controllers:
            (folder / "kubeconfig").touch(mode=0o600)
            (folder / "kubeconfig").write_text(api.kubeconfig())
            stack.enter_context(_running(plan.controllers, folder))
        yield api


@contextlib.contextmanager
def _running(argv: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{Path(argv[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    context = create_default_context()
    context.check_hostname, context.verify_mode = False, CERT_NONE
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log.read_text(errors="replace")[-_TAIL:]
            raise AssetsUnusable(f"kube-apiserver ended with status {process.returncode}: {tail}")
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=2, context=context).close()
            return
        except OSError:  # URLError is one
            pass
        time.sleep(0.1)
    raise AssetsUnusable(f"kube-apiserver was not ready within {_READY_S:g} s; see {log}")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


def _write_key(path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
