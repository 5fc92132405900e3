"""What the demo shows, and each thing that it checks. A step returns what to say, or raises NotTrue.

Every check has its counterpart: the capture that must not see the shop's payload must see the
stranger's, so that a blind capture cannot pass.
"""

import json
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.clock import monotonic
from local.cluster import Cluster

Link = Mapping[str, Any]
ORDERS = 20
_LINKS_WITHIN_S = 15.0
_FOLDER = Path(__file__).parent


class NotTrue(Exception):
    """Something that the demo promises did not hold. One line."""


class Shop:
    """The shop on a running cluster, and what was seen of it so far."""

    def __init__(self, cluster: Cluster, links: Callable[[], Sequence[Link]]) -> None:
        self._cluster, self._links = cluster, links
        self._secret = f"card-{secrets.token_hex(8)}"
        """What web sends to api: it must never be seen on the wire."""
        self._control = f"bare-{secrets.token_hex(8)}"
        """What the stranger sends: it must be seen."""
        self.seen: Sequence[Link] = ()

    @property
    def store(self) -> str:
        return "Redis" if shutil.which("redis-server") else "a small TCP store of ours"

    def open(self) -> str:
        """Create the shop and wait for its pods."""
        self._cluster.apply(shop_objects())
        self._cluster.wait_ready("shop/web", "shop/api", "shop/store", "outside/stranger")
        pods = [self._cluster.get("Pod", f"shop/{name}") for name in ("web", "api", "store")]
        for pod in pods:
            names = [c["name"] for c in pod["spec"].get("initContainers", ())]
            if names[:2] != ["podlink-capture", "podlink-proxy"]:
                raise NotTrue(f"pod {pod['metadata']['name']} was not injected: {names}")
        return (
            f"web, api and store ({self.store}) run, each with its sidecar; stranger runs without"
        )

    def plain_code(self) -> str:
        """The app's code says http:// and nothing of TLS."""
        code = (_FOLDER / "web.py").read_text()
        line = next(line for line in code.splitlines() if line.startswith("API = "))
        if "ssl" in code or "https" in code or "podlink." in code:
            raise NotTrue("the app's code knows of TLS")
        return f"the app's code says {line.removeprefix('API = ')} and knows nothing of TLS"

    def order(self) -> str:
        """Web calls api, api calls the store, ORDERS times."""
        for n in range(1, ORDERS + 1):
            done = self._call("shop/web", f"http://127.0.0.1:8080/order/{self._secret}")
            if done.returncode or done.stdout != f"order {n}: {self._secret}\n":
                raise NotTrue(f"order {n} failed: {done.stdout}{done.stderr}".strip())
        return f"{ORDERS} orders went from web over api to the store"

    def stranger(self) -> str:
        """A pod without a sidecar calls the same Service in plaintext."""
        done = self._call("outside/stranger", f"http://api.shop/{self._control}")
        if done.returncode == 0:
            raise NotTrue(f"the stranger was served: {done.stdout.strip()}")
        return f"the stranger's plaintext call was refused: {done.stderr.strip()}"

    @contextmanager
    def watched(self) -> Iterator[Callable[[], str]]:
        """While this lasts every packet in the node's network is looked at; then call what it gives."""
        with tempfile.TemporaryDirectory(prefix="podlink-demo-") as folder:
            yield self._watch(Path(folder) / "sniff")

    def _watch(self, path: Path) -> Callable[[], str]:
        cluster, report = self._cluster, dict[str, Any]()
        argv = ["python", "-m", "cli.demo.sniff", str(path), self._secret, self._control]

        def sniff() -> None:
            done = cluster.node_exec(argv, timeout_s=60)
            lines = done.stdout.splitlines()
            report.update(json.loads(lines[-1]) if lines else {"error": done.stderr.strip()})

        thread = threading.Thread(target=sniff, daemon=True)
        thread.start()
        deadline = monotonic() + 15
        while cluster.node_exec(["test", "-e", f"{path}.started"]).returncode:
            if monotonic() > deadline or not thread.is_alive():
                raise NotTrue(f"the packet capture did not start: {report.get('error', '')}")

        def verdict() -> str:
            cluster.node_exec(["touch", f"{path}.stop"])
            thread.join(20)
            if "seen" not in report:
                raise NotTrue(f"the capture did not work: {report.get('error', 'no report')}")
            if not report["seen"][self._control]:
                raise NotTrue("the capture is blind: it did not even see the stranger's plaintext")
            if report["seen"][self._secret]:
                raise NotTrue("the capture saw the shop's payload in plaintext")
            return (
                f"{report['packets']} packets captured between the pods: the stranger's payload is "
                f"in them, not a byte of the shop's"
            )

        return verdict

    def record(self) -> str:
        """Every order left two links, each told by both sides; the stranger left a denial."""
        deadline = monotonic() + _LINKS_WITHIN_S
        while True:
            self.seen = self._links()
            problem = self._lacks()
            if not problem:
                break
            if monotonic() > deadline:
                raise NotTrue(problem)
            threading.Event().wait(0.2)
        return (
            f"{len(self.seen)} links are recorded, mutual TLS between the shop's pods by both sides"
        )

    def _lacks(self) -> str:
        for source, destination in (("web", "api"), ("api", "store")):
            found = [link for link in self.seen if _between(link, source, destination)]
            if len(found) != ORDERS:
                return f"{len(found)} of {ORDERS} links from {source} to {destination} are recorded"
        if not any(link.get("reason") == "plaintext_denied" for link in self.seen):
            return "the stranger's refusal is not recorded"
        return ""

    def one_trace(self) -> str:
        """The id of a trace of one request from web to api."""
        trace: str = next(link for link in self.seen if _between(link, "web", "api"))["trace_id"]
        return trace

    def _call(self, pod: str, url: str) -> "subprocess.CompletedProcess[str]":
        # Not by curl, which a bare machine lacks.
        return self._cluster.exec(pod, ["python", "-m", "cli.demo.call", url])


def shop_objects() -> str:
    """The shop's manifest, with Redis for the store if the machine has one."""
    redis = shutil.which("redis-server")
    command = (
        [redis, "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/tmp"]  # noqa: S108
        if redis
        else ["python", "-m", "cli.demo.store"]
    )
    return (_FOLDER / "shop.yaml").read_text().replace("STORE_COMMAND", json.dumps(command))


def _between(link: Link, source: str, destination: str) -> bool:
    """Whether it is an allowed mTLS link between these pods that both sides tell of alike."""
    from_, to = link.get("source") or {}, link.get("destination") or {}
    return (
        from_.get("identity") == f"spiffe://cluster.local/ns/shop/sa/{source}"
        and to.get("identity") == f"spiffe://cluster.local/ns/shop/sa/{destination}"
        and link.get("security") == "mtls"
        and link.get("verdict") == "allowed"
        and set(link.get("sides") or ()) == {"outbound", "inbound"}
    )
