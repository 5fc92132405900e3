"""The first process of the node's namespaces; `cluster.real_node` starts it.

It makes the machine's own folders and network into the node's (nothing of that is seen outside), starts
the programs and waits. When it ends, for whatever reason, the kernel ends everything that it started.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.kubernetes.node.plan import NODE_IP, NodePlan, network

CNI_PLUGINS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
_AGAIN_S = 0.5
_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/bridge/bridge-nf-call-ip6tables": "1",
}


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def make_folders(folder: Path) -> None:
    plugins = next(Path(one) for one in CNI_PLUGINS if Path(one, "bridge").exists())
    copied = folder / "cni-bin"
    shutil.copytree(plugins, copied, dirs_exist_ok=True)
    run("mount", "--make-rshared", "/")
    for name in ("etc", "var"):
        upper, work = folder / f"{name}-upper", folder / f"{name}-work"
        upper.mkdir()
        work.mkdir()
        said = f"lowerdir=/{name},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "overlay", "-o", said, f"/{name}")
    for name in ("/run", "/opt"):
        run("mount", "-t", "tmpfs", "tmpfs", name)
    bin_dir = Path("/opt/cni/bin")
    bin_dir.mkdir(parents=True)
    run("mount", "--bind", str(copied), str(bin_dir))
    for one in (folder / "log", Path("/var/log/pods"), Path("/var/log/containers")):
        one.mkdir(parents=True, exist_ok=True)
    conf = Path("/etc/cni/net.d")
    shutil.rmtree(conf, ignore_errors=True)
    conf.mkdir(parents=True)
    (conf / "10-pods.conflist").write_text(json.dumps(network(folder), indent=1))
    Path("/etc/resolv.conf").unlink(missing_ok=True)
    Path("/etc/resolv.conf").write_text(f"nameserver {NODE_IP}\n")


def make_network() -> None:
    run("ip", "link", "set", "lo", "up")
    # The node's own address, on a device that leads nowhere.
    run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "nowhere")
    run("ip", "link", "set", "nowhere", "up")
    run("ip", "address", "add", f"{NODE_IP}/24", "dev", "uplink")
    run("ip", "link", "set", "uplink", "up")
    run("ip", "route", "add", "default", "dev", "uplink")
    for name, value in _SYSCTLS.items():
        path = Path("/proc/sys", name)
        if path.exists():
            path.write_text(value)


def main(argv: list[str]) -> None:
    folder, assets, cgroup = Path(argv[0]), Path(argv[1]), argv[2]
    plan = NodePlan(folder, assets, cgroup)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    make_folders(folder)
    make_network()
    commands = plan.commands()
    commands["dns"] = [
        sys.executable,
        "-m",
        "tests.kubernetes.node.names",
        str(plan.kubeconfig("admin")),
    ]
    started = {start(name, command, folder): name for name, command in commands.items()}
    while True:  # everything without a parent is ours to reap, too
        pid, status = os.waitpid(-1, 0)
        name = started.pop(pid, "")
        if name:  # most end while etcd or the API server is not up yet
            print(f"{name} ended with status {os.waitstatus_to_exitcode(status)}", flush=True)
            time.sleep(_AGAIN_S)
            started[start(name, commands[name], folder)] = name


def start(name: str, command: list[str], folder: Path) -> int:
    with (folder / "log" / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log).pid


if __name__ == "__main__":
    main(sys.argv[1:])
