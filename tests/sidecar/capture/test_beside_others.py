"""Capture beside the rules of others, for every kind of pod network: it works, and theirs stay.

What a node's or a runtime's own tables look like in a pod's namespace: kube-proxy's (Services in
nftables mode), Calico's and Docker's (through iptables-nft), and iptables-legacy, whose rules run in the
same hooks by another way. The rules are cut to what could meet ours: NAT at the same hooks.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sidecar.capture.test_apply import Pod

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

KUBE_PROXY = """
table ip kube-proxy {
  chain nat-output { type nat hook output priority -100; policy accept;
    ip daddr 10.96.0.10 tcp dport 443 dnat to 10.77.0.1:6443
  }
  chain nat-prerouting { type nat hook prerouting priority -100; policy accept;
    ip daddr 10.96.0.10 tcp dport 443 dnat to 10.77.0.1:6443
  }
  chain nat-postrouting { type nat hook postrouting priority 100; policy accept;
    meta mark & 0x4000 != 0 masquerade
  }
}
table ip6 kube-proxy {
  chain nat-output { type nat hook output priority -100; policy accept;
    ip6 daddr fd96::10 tcp dport 443 dnat to [fd77::1]:6443
  }
}
"""
CALICO = """
table ip filter {
  chain INPUT { type filter hook input priority 0; policy accept; jump cali-INPUT
  }
  chain OUTPUT { type filter hook output priority 0; policy accept; jump cali-OUTPUT
  }
  chain cali-INPUT { meta mark & 0x10000 == 0x10000 accept
  }
  chain cali-OUTPUT { ct state invalid drop
  }
}
table ip nat {
  chain OUTPUT { type nat hook output priority -100; policy accept; jump cali-OUTPUT
  }
  chain POSTROUTING { type nat hook postrouting priority 100; policy accept; jump cali-POSTROUTING
  }
  chain cali-OUTPUT { ip daddr 192.0.2.200 return
  }
  chain cali-POSTROUTING { ip saddr 10.77.0.0/24 ip daddr != 10.77.0.0/24 masquerade
  }
}
"""
DOCKER = """
table ip nat {
  chain OUTPUT { type nat hook output priority -100; policy accept;
    ip daddr 127.0.0.11 jump DOCKER_OUTPUT
  }
  chain POSTROUTING { type nat hook postrouting priority 100; policy accept;
    ip daddr 127.0.0.11 jump DOCKER_POSTROUTING
  }
  chain DOCKER_OUTPUT { ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:38129
  }
  chain DOCKER_POSTROUTING { ip saddr 127.0.0.11 tcp sport 38129 snat to :53
  }
}
"""
OTHERS = {"nobody": "", "kube-proxy": KUBE_PROXY, "calico": CALICO, "docker": DOCKER}
FAMILIES = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}
TARGETS = {4: "198.51.100.9", 6: "fd99::9"}


@pytest.fixture(params=FAMILIES, ids=str)
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    it = Pod(f"oth{os.getpid()}")
    try:
        it.up()
        for version in {4, 6} - set(FAMILIES[request.param]):
            it.run("ip", f"-{version}", "addr", "flush", "dev", "eth0")
        yield it
    finally:
        it.down()


def versions(request: pytest.FixtureRequest) -> tuple[int, ...]:
    found: tuple[int, ...] = FAMILIES[request.node.callspec.params["pod"]]
    return found


def listed(pod: Pod) -> str:
    """The rules of everybody else."""
    lines, skip = [], False
    for line in pod.tables().splitlines():
        if line.startswith("table "):
            skip = line.startswith("table inet podlink ")
        if not skip:
            lines.append(line)
    return "\n".join(lines)


def load(pod: Pod, folder: Path, rules: str) -> None:
    path = folder / "others.nft"
    path.write_text(rules)
    done = pod.run("nft", "-f", str(path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("others", OTHERS)
def test_capture_works_and_leaves_everybody_elses_rules(
    pod: Pod, others: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    load(pod, tmp_path, OTHERS[others])
    before = listed(pod)
    # Twice, as after a container's restart: the second time all the rules are there already.
    for _ in range(2):
        done = pod.capture()
        assert done.returncode == 0, done.stdout + done.stderr
        for version in versions(request):
            ip = TARGETS[version]
            assert pod.lands(ip, 80) == f"captured {ip} 80"
            assert f"IPv{version} captured" in done.stdout + done.stderr
        assert pod.tables().count("table inet podlink") == 1
        assert listed(pod) == before


@pytest.mark.skipif(
    shutil.which("iptables-legacy", path="/usr/sbin:/sbin") is None,
    reason="iptables-legacy is not here",
)
def test_capture_works_where_iptables_legacy_has_rules(
    pod: Pod, request: pytest.FixtureRequest
) -> None:
    made = pod.run(
        "iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-d", "203.0.113.1", "-j", "RETURN"
    )
    if made.returncode:
        pytest.skip(f"this kernel has no legacy tables: {made.stderr.strip()[:100]}")
    for _ in range(2):
        done = pod.capture()
        assert done.returncode == 0, done.stdout + done.stderr
        for version in versions(request):
            ip = TARGETS[version]
            assert pod.lands(ip, 80) == f"captured {ip} 80"
    kept = pod.run("iptables-legacy", "-t", "nat", "-S", "OUTPUT").stdout
    assert "-d 203.0.113.1/32 -j RETURN" in kept


def test_a_redirect_of_somebody_else_that_comes_first_is_found_out(
    pod: Pod, tmp_path: Path
) -> None:
    """Whoever redirects before us would take the app's connections: the pod must not start."""
    thief = """
table inet thief {
  chain o { type nat hook output priority -150; policy accept;
    tcp dport 1-65535 redirect to :15001
  }
}
"""
    load(pod, tmp_path, thief)
    done = pod.capture()
    assert done.returncode == 1
    assert "does another redirect or a CNI plugin come first?" in done.stdout + done.stderr
    assert "table inet podlink" not in pod.tables()
