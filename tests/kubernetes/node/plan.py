"""What each program of the node is told: command lines and configuration files. Pure.

One node is its own network and mount namespace, so every program keeps its ordinary ports and paths,
and what the chart expects of a node (/opt/cni/bin, /etc/cni/net.d) is where it expects it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NODE_IP = "172.30.0.1"
SERVICES = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
PODS = {4: "10.244.1.0/24", 6: "fd77:1::/64"}
API_PORT = 6443
PAUSE_IMAGE = "localhost/pause:1"
PROGRAMS = (
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
    "kubectl",
)  # fmt: skip
COMPONENTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "admin": ("admin", ("system:masters",)),
    "controller-manager": ("system:kube-controller-manager", ()),
    "scheduler": ("system:kube-scheduler", ()),
    "proxy": ("system:kube-proxy", ()),
    "node": ("system:node:node-1", ("system:nodes",)),
}
"""Who speaks to the API server: the name of the kubeconfig, its user and its groups."""


@dataclass(frozen=True)
class NodePlan:
    folder: Path
    """Everything of this cluster. On a file system that overlayfs can lie on."""
    assets: Path
    """The folder with the programs (KUBEBUILDER_ASSETS)."""
    cgroup: str
    """Name of the cgroup that all pods live in, below the root of each controller."""
    name: str = "node-1"
    proxy_mode: str = "nftables"
    """kube-proxy's: `nftables` or `iptables`."""

    @property
    def server(self) -> str:
        return f"https://{NODE_IP}:{API_PORT}"

    @property
    def containerd_socket(self) -> Path:
        return Path("/run/containerd/containerd.sock")

    def kubeconfig(self, who: str) -> Path:
        return self.folder / "pki" / f"{who}.kubeconfig"

    def commands(self) -> dict[str, list[str]]:
        """By name, in the order of starting."""
        at, pki = self.assets, self.folder / "pki"
        etcd = f"http://{NODE_IP}:2379"
        return {
            "etcd": [
                str(at / "etcd"), f"--data-dir={self.folder / 'etcd'}", "--unsafe-no-fsync",
                f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
                "--listen-peer-urls=http://127.0.0.1:2380",
            ],
            "containerd": ["containerd", "--config", str(self.folder / "containerd.toml")],
            "kube-apiserver": [
                str(at / "kube-apiserver"), f"--etcd-servers={etcd}",
                f"--advertise-address={NODE_IP}", f"--secure-port={API_PORT}",
                f"--tls-cert-file={pki / 'kube-apiserver.crt'}",
                f"--tls-private-key-file={pki / 'kube-apiserver.key'}",
                f"--client-ca-file={pki / 'ca.crt'}",
                "--kubelet-preferred-address-types=InternalIP",
                f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
                f"--kubelet-client-key={pki / 'kubelet-client.key'}",
                f"--token-auth-file={pki / 'tokens.csv'}",
                "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
                f"--service-cluster-ip-range={SERVICES}",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                f"--service-account-key-file={pki / 'service-accounts.key'}",
                f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
                "--allow-privileged=true", "--profiling=false",
            ],
            "kube-controller-manager": [
                str(at / "kube-controller-manager"),
                f"--kubeconfig={self.kubeconfig('controller-manager')}",
                f"--service-account-private-key-file={pki / 'service-accounts.key'}",
                f"--root-ca-file={pki / 'ca.crt'}", "--use-service-account-credentials=true",
                "--leader-elect=false", "--node-monitor-grace-period=60s",
            ],
            "kube-scheduler": [
                str(at / "kube-scheduler"), f"--kubeconfig={self.kubeconfig('scheduler')}",
                "--leader-elect=false",
            ],
            "kubelet": [
                str(at / "kubelet"), f"--config={self.folder / 'kubelet.yaml'}",
                f"--kubeconfig={self.kubeconfig('node')}", f"--hostname-override={self.name}",
                f"--node-ip={NODE_IP}", f"--root-dir={self.folder / 'kubelet'}",
            ],
            "kube-proxy": [
                str(at / "kube-proxy"), f"--config={self.folder / 'kube-proxy.yaml'}",
                f"--hostname-override={self.name}",
            ],
        }  # fmt: skip

    def files(self) -> dict[str, str]:
        """Configuration by path below `folder`. JSON is YAML, too."""
        return {
            "containerd.toml": self._containerd(),
            "kubelet.yaml": json.dumps(self._kubelet(), indent=1),
            "kube-proxy.yaml": json.dumps(self._proxy(), indent=1),
        }

    def _containerd(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""\
version = 2
root = "{self.folder / "containerd"}"
state = "/run/containerd/state"
[grpc]
  address = "{self.containerd_socket}"
[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  # No container may go below the score that this process has: raising it again needs CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  [{cri}.containerd]
    snapshotter = "overlayfs"
  [{cri}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [{cri}.containerd.runtimes.runc.options]
      SystemdCgroup = false
  [{cri}.cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""

    def _kubelet(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.folder / "pki/ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "clusterDNS": [NODE_IP],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{self.containerd_socket}",
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "50Mi"},
            "localStorageCapacityIsolation": False,
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
            "protectKernelDefaults": False,
            "resolvConf": "/etc/resolv.conf",
            "syncFrequency": "10s",
            "shutdownGracePeriod": "0s",
        }

    def _proxy(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self.kubeconfig("proxy"))},
            "clusterCIDR": PODS[4],
            "mode": self.proxy_mode,
            # Both limits belong to the machine, not to this network namespace.
            "conntrack": {"maxPerCore": 0, "min": 0},
            "oomScoreAdj": 0,
        }


def network(folder: Path) -> dict[str, Any]:
    """The cluster's own network: containerd's chain before podlink comes."""
    ranges = [[{"subnet": one}] for one in PODS.values()]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True,
                "ipam": {
                    "type": "host-local", "ranges": ranges, "routes": routes,
                    "dataDir": str(folder / "addresses"),
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }  # fmt: skip
