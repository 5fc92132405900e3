"""A real kube-apiserver with its etcd, from the folder that KUBEBUILDER_ASSETS names.

The folder is what `setup-envtest use -p path` prints; nothing is downloaded here. Both programs listen
on loopback, keep their data in a folder of the test's and end with it.
"""

import contextlib
import secrets
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from ssl import CERT_NONE, create_default_context

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes.aio.client import Configuration

from kit.kube import Kube

VARIABLE = "KUBEBUILDER_ASSETS"
PROGRAMS = ("etcd", "kube-apiserver")
_READY_S = 60.0
_TAIL = 2000


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
            "--disable-admission-plugins=ServiceAccount",  # no controller makes the accounts here
            "--allow-privileged=true",
        ]


@dataclass(frozen=True)
class RealApi:
    url: str
    token: str

    def kube(self) -> Kube:
        """A client with every right; close it."""
        configuration = Configuration(host=self.url)
        configuration.verify_ssl = False  # its certificate is its own, made at start, on loopback
        configuration.api_key = {"BearerToken": self.token}
        configuration.api_key_prefix = {"BearerToken": "Bearer"}
        return Kube(configuration)


@contextlib.contextmanager
def real_api(assets: Path, folder: Path) -> Iterator[RealApi]:
    """Run both programs until the block ends. Raises AssetsUnusable with the end of a log."""
    plan = Plan(folder, assets, *_free_ports(3))
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
        yield RealApi(url, token)


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


def _free_ports(count: int) -> list[int]:
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
