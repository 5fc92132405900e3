"""The cluster's one daemon: API server, controllers, kubelet, service proxy and DNS in one loop.

Started by `init` as `python -m local.node.daemon <plan as JSON> <fd of the wire to init>`. Says on
`ready` that it serves, and then works until it is told to end or init ends it.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from kit.clock import utcnow
from kit.logs import start_logging
from kit.tasks import spawn
from local.apiserver import events, resources, serving
from local.apiserver.api import Api
from local.apiserver.defaults import NODE_NAME
from local.apiserver.http import HttpApi
from local.controllers.endpoints import EndpointController
from local.controllers.lifecycle import LifecycleController
from local.controllers.loop import Loop
from local.controllers.workloads import WorkloadController
from local.node import dns, tools
from local.node.control import Control
from local.node.environment import SOURCE_ROOT
from local.node.kubelet import Kubelet
from local.node.network import DNS_IP, NODE_IP, NODE_IP6, POD_CIDR, POD_CIDR6, Network
from local.node.podworker import Node
from local.node.proxy import ServiceProxy
from local.node.publish import publish
from local.node.spawner import Spawner
from local.objects import Object, timestamp

API_IP, API_PORT, API_INSIDE_PORT = "10.96.0.1", 443, 6443
_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_log = logging.getLogger(__name__)


def needed_paths() -> tuple[str, ...]:
    """What every container must see to run `python`: the interpreter, its packages and podlink."""
    paths = {
        sys.prefix,
        sys.base_prefix,
        str(Path(sys.base_prefix).resolve()),
        str(Path(sys.executable).resolve().parent.parent),
        str(SOURCE_ROOT),
        *(path for path in sys.path if Path(path).is_dir()),
    }
    wanted = sorted(p for p in paths if p != "/" and not p.startswith("/usr/"))
    return tuple(
        p for p in wanted if p != "/usr" and not any(p.startswith(f"{q}/") for q in wanted)
    )


async def run(plan: dict[str, Any], wire: int) -> None:
    """Serve until SIGTERM."""
    state = Path(plan["state"])
    sockets = {name: socket.socket(fileno=fd) for name, fd in plan["sockets"].items()}
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    tools.require(os.defpath)
    api = Api()
    tls, api.root_ca = serving.make([API_IP, NODE_IP, "127.0.0.1"])
    network = Network()
    await network.start()
    _allow_paths(state)
    spawner = Spawner(wire)
    node = Node(
        api=api,
        spawner=spawner,
        network=network,
        root=state / "node",
        needed=needed_paths(),
        single_uid=_single_uid(),
        api_host=API_IP,
        api_port=API_PORT,
        event=lambda *said: events.record(api, *said),
    )
    kubelet = Kubelet(node)
    for loop in _controllers(api):
        loop.start()
    kubelet.start()
    await _seed(api)
    await ServiceProxy(api.store).start()
    await dns.serve(api.store, DNS_IP)
    api_socket = sockets.pop("api")
    await _serve_api(api, kubelet, tls, api_socket)
    spawn(Control(sockets.pop("control"), spawner, kubelet).serve(), name="control socket")
    for target, listener in sockets.items():
        await publish(listener, target, api.store)
    port = api_socket.getsockname()[1]
    server = f"https://127.0.0.1:{port}"
    _write_kubeconfig(state / "kubeconfig", server, api)
    os.write(plan["ready"], json.dumps({"ready": {"server": server}}).encode())
    os.close(plan["ready"])
    await ended.wait()


def _controllers(api: Api) -> list[Loop]:
    endpoints, workloads = EndpointController(api), WorkloadController(api)
    lifecycle = LifecycleController(api)
    return [
        Loop("endpoints", api.store, endpoints.LOOKS_AT, endpoints.reconcile),
        Loop("workloads", api.store, workloads.LOOKS_AT, workloads.reconcile),
        Loop("lifecycle", api.store, None, lifecycle.reconcile),
    ]


async def _serve_api(api: Api, kubelet: Kubelet, tls: Any, outside: socket.socket) -> None:
    application = HttpApi(api, kubelet).application()
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    await web.SockSite(runner, outside, ssl_context=tls).start()
    await web.TCPSite(runner, NODE_IP, API_INSIDE_PORT, ssl_context=tls).start()


async def _seed(api: Api) -> None:
    """The objects that every cluster has."""
    for name in _NAMESPACES:
        await api.create(resources.NAMESPACES, "", {"metadata": {"name": name}})
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    node = {
        "metadata": {"name": NODE_NAME, "labels": {"kubernetes.io/hostname": NODE_NAME}},
        "spec": {"podCIDR": str(POD_CIDR), "podCIDRs": [str(POD_CIDR), str(POD_CIDR6)]},
    }
    made = await api.create(resources.NODES, "", node)
    addresses = [{"type": "InternalIP", "address": ip} for ip in (NODE_IP, NODE_IP6)]
    api.set_status(resources.NODES, made, {"conditions": [ready], "addresses": addresses})
    https = {"name": "https", "port": API_PORT, "targetPort": API_INSIDE_PORT, "protocol": "TCP"}
    await _own_service(api, "default", "kubernetes", API_IP, [https])
    ports = [
        {"name": f"dns-{kind.lower()}", "port": 53, "targetPort": 53, "protocol": kind}
        for kind in ("UDP", "TCP")
    ]
    await _own_service(api, "kube-system", "kube-dns", DNS_IP, ports)


async def _own_service(
    api: Api, namespace: str, name: str, address: str, ports: list[Object]
) -> None:
    """A Service that the node itself answers."""
    body = {"metadata": {"name": name}, "spec": {"clusterIP": address, "ports": ports}}
    await api.create(resources.SERVICES, namespace, body)
    conditions = {"ready": True, "serving": True, "terminating": False}
    slice_ports = [
        {"name": p["name"], "port": p["targetPort"], "protocol": p["protocol"]} for p in ports
    ]
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": str(uuid.uuid4()),
        "creationTimestamp": timestamp(utcnow()),
        "labels": {"kubernetes.io/service-name": name},
    }
    api.store.add(
        resources.SLICES.key,
        {
            "apiVersion": resources.SLICES.api_version,
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": "IPv4",
            "ports": slice_ports,
            "endpoints": [{"addresses": [NODE_IP], "conditions": conditions}],
        },
    )


def _single_uid() -> bool:
    rows = Path("/proc/self/uid_map").read_text().split()
    return rows[2:] == ["1"]


def _allow_paths(state: Path) -> None:
    """The node's tmpfs holds what only containers may see, each its own part of it."""
    for name in ("pods",):
        (state / "node" / name).mkdir(mode=0o755, exist_ok=True)


def _write_kubeconfig(path: Path, server: str, api: Api) -> None:
    import base64

    authority = base64.b64encode(api.root_ca.encode()).decode()
    cluster = {"server": server, "certificate-authority-data": authority}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "podlink-local",
        "clusters": [{"name": "podlink-local", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": api.tokens.admin_token}}],
        "contexts": [
            {"name": "podlink-local", "context": {"cluster": "podlink-local", "user": "admin"}}
        ],
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))


def main(argv: Sequence[str]) -> int:
    start_logging("info")
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plan = json.loads(argv[1])
    try:
        asyncio.run(run(plan, int(argv[2])))
    except Exception as e:
        _log.exception("the cluster cannot go on")
        try:
            os.write(plan["ready"], json.dumps({"error": str(e)}).encode())
        except OSError:
            return 1
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
